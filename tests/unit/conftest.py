"""Settings of Hypothesis: an example may take as long as a busy machine makes it take."""

from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
