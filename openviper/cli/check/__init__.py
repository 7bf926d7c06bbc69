"""What ``viperctl email check`` looks at, one module for each subject."""
