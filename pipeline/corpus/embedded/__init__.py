"""Small real corpora that need no network: one embedded, one made from scikit-learn."""
