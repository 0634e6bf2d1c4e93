"""One file per kind of source; each has a function ``list_*`` that gives a Corpus."""
