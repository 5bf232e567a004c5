"""The distiller and the losses of all methods; `assembly` makes trainings of them."""
