"""Run folder, units, resume, executors: everything a measurement gets for free."""
