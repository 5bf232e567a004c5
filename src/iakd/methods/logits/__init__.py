"""Methods that look at outputs alone."""

from iakd.methods.logits.ctkd import Ctkd
from iakd.methods.logits.dist import Dist
from iakd.methods.logits.dkd import Dkd
from iakd.methods.logits.kd import Kd
from iakd.methods.logits.label_smoothing import LabelSmoothing
from iakd.methods.logits.lskd import Lskd, Standardize
from iakd.methods.logits.mlkd import Mlkd
from iakd.methods.logits.mutual import Mutual
from iakd.methods.part import Part

PARTS: dict[str, type[Part]] = {
    "scratch": Part,
    "label_smoothing": LabelSmoothing,
    "kd": Kd,
    "dkd": Dkd,
    "dist": Dist,
    "ctkd": Ctkd,
    "lskd": Lskd,
    "mlkd": Mlkd,
    "mutual": Mutual,
    "standardize": Standardize,
}
