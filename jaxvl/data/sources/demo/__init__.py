"""Recipes that build the demo data: fetched or drawn once, then read like any other source."""
