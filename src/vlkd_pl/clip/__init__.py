"""The frozen CLIP: its class, files, tokenizer and image transform."""
