"""Inputs of the operators that tests and reports draw, where an operator's own module would be too long with
them.
"""
