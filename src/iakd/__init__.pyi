# The types of what __init__.py imports when it is asked for.
from iakd.api import Classifier as Classifier
from iakd.api import Distilled as Distilled
from iakd.api import Partition as Partition
from iakd.api import Prediction as Prediction
from iakd.api import RunFailed as RunFailed
from iakd.api import SwappingStudent as SwappingStudent
from iakd.api import UserError as UserError
from iakd.api import distill as distill
from iakd.api import hybrid as hybrid
from iakd.api import load as load
from iakd.api import run as run

__version__: str
