"""Leaving out features that say nothing, or nothing that another one does not say."""
