"""Lightning modules: one for each experiment of the paper, and the pretraining of the sample world's models."""
