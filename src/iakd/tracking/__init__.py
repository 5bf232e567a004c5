"""MLflow as a view of the results: trainings only write files, and a separate process mirrors them.

How a mirrored run travels, one module per step:

1. `experiment.run_dir`: a training writes run.json, history.csv, … below .state/ and, at its end, below results/.
2. `scan` lists these files for every run and exported model, with time and size, so that unchanged ones cost nothing.
3. `content` turns one run's files into names, tags, parameters, metrics and artifacts.
4. `mirror` compares that with what MLflow has and sends the difference; `sync` does it once.
5. `mlflow_client` sends runs to MLflow, `models` exported models, and `database` makes MLflow's database where there is
   no server. No other module imports `mlflow`.
6. `follower` repeats 2 to 5 in a background process, one per experiment, while anything is training.

`address` says which MLflow that is, `plan` which runs belong to the current settings; `ui` opens MLflow's pages, with
the saved `views`.
"""
