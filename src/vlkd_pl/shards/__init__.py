"""Webdataset shards: finding them, reading their samples, and decoding these."""
