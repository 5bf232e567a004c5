"""The report's figures, drawn as vector graphics in colours that the page can replace by its own."""
