"""Tables, statistics, figures and the page: drawn from files alone, without torch or MLflow."""
