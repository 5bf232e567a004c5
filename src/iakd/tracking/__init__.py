"""MLflow as a view of the results: trainings write files and wait for nobody, another process shows them.

`launch` starts that process, the follower (`follow`), one per results tree and experiment; `sync` does the
same once. Only `store` imports mlflow.
"""
