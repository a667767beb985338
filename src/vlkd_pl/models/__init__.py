"""The distilled model of a frozen CLIP and a BART, its prompts and its decoding."""
