"""Checks of ``verify()`` and ``viperctl email check``, one module for each subject."""
