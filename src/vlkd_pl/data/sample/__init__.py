"""The sample world: small drawn scenes, their captions, and a text corpus, in the file formats of the real data."""
