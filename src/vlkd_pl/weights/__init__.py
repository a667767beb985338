"""Reading of model files without executing anything in them."""
