"""The web page of ``vlkd-pl demo``."""
