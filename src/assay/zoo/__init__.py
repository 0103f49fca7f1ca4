"""Reference material: models and densities whose true values are known in closed form."""
