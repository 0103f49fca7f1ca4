"""Weight space: the localized posterior, its samplers, and the learning coefficient they measure."""
