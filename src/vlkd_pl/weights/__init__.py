"""Reading the files of a model without executing anything in them."""
