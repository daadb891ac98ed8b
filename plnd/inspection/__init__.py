"""What single neurons are about: the tokens on which they fire in each language, and the tokens that they write."""
