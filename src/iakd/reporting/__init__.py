"""Tables, statistics, figures and the page of the report, made from files alone, without torch or MLflow.

`results` reads the files; `statistics` has the means and paired differences; `verdict` says who won; `key_table` and
`page` make report.html with the figures of `figures`; `tables` makes the CSV and Markdown files; `formatting` turns
numbers and settings into text.
"""
