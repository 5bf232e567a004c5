"""Turns a trained network into files that run without this project, and checks that they compute the same."""
