"""Files: the artifact format, corpora, whole-or-nothing writing."""
