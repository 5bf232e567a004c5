"""The report's figures. Each is drawn once, as a vector graphic, with colours that the page can exchange."""
