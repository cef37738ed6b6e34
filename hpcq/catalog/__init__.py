"""What the field knows, as data: TOML files beside the modules that give their rows types."""
