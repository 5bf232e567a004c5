"""Methods that look at intermediate features."""

from iakd.methods.features.ab import Ab
from iakd.methods.features.at import At
from iakd.methods.features.fitnet import Fitnet
from iakd.methods.features.fsp import Fsp
from iakd.methods.features.ft import Ft
from iakd.methods.features.hints import Hints
from iakd.methods.features.nst import Nst
from iakd.methods.features.ot import Ot
from iakd.methods.features.reviewkd import Reviewkd
from iakd.methods.features.simkd import Simkd
from iakd.methods.features.vid import Vid
from iakd.methods.part import Part

PARTS: dict[str, type[Part]] = {
    "fitnet": Fitnet,
    "at": At,
    "nst": Nst,
    "vid": Vid,
    "ft": Ft,
    "fsp": Fsp,
    "ab": Ab,
    "reviewkd": Reviewkd,
    "simkd": Simkd,
    "ot": Ot,
    "hints": Hints,
}
