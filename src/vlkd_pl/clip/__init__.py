"""The frozen CLIP: its class, weights files, tokenizer and image transform."""
