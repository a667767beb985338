"""The frozen CLIP, and the model that distillation makes of it and BART."""
