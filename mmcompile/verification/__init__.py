"""Verification: is the compiled model still right, and if not, from which layer on?"""
