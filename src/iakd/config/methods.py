"""The registry of methods: what each is, its options and its loss. Importing it imports no torch.

A method is an options class, a loss class (`iakd.distillation.losses`), an entry here and a page in docs/methods/.
Other packages add theirs under the entry-point group `iakd.methods` (docs/extending.md).
"""

from itertools import groupby, permutations
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, create_model, model_validator

from iakd.config import method_options as options
from iakd.config.base import Strict, did_you_mean
from iakd.config.method_options import BlockwiseOptions, IakdOptions
from iakd.config.networks import Teacher
from iakd.config.tuning import Searched
from iakd.plugins import Group, MethodSpec, discover

GROUP_TITLES: dict[Group, str] = {
    "interactive": "Interactive",
    "reference": "References, without a teacher",
    "logits": "Outputs",
    "features": "Intermediate features",
    "relations": "Relations between images",
    "data": "Data",
}
OUTPUT_GROUPS: tuple[Group, ...] = ("reference", "logits", "data")  # whose methods look at no features
LOSS_GROUPS: tuple[Group, ...] = ("logits", "features", "relations")  # whose methods add a loss of their own


def _loss(module_and_class: str) -> str:
    return f"iakd.distillation.losses.{module_and_class}"


_LOGIT_METHODS = {
    "kd": MethodSpec(
        "the teacher's softened outputs as targets (Hinton et al. 2015)",
        "logits",
        _loss("kd:KDLoss"),
        options.KdOptions,
        cites=("hinton2015distilling",),
    ),
    "dkd": MethodSpec(
        "kd with separate weights for the target class and the others (Zhao et al. 2022)",
        "logits",
        _loss("dkd:DKDLoss"),
        options.DkdOptions,
        cites=("zhao2022decoupled",),
    ),
    "dist": MethodSpec(
        "correlations of outputs, over classes and over images (Huang et al. 2022)",
        "logits",
        _loss("dist:DISTLoss"),
        options.DistOptions,
        cites=("huang2022knowledge",),
    ),
    "ctkd": MethodSpec(
        "kd with a temperature that is learned against the student (Li et al. 2023)",
        "logits",
        _loss("ctkd:CTKDLoss"),
        options.CtkdOptions,
        cites=("li2023curriculum",),
    ),
    "lskd": MethodSpec(
        "kd between logits that are standardised per image (Sun et al. 2024)",
        "logits",
        _loss("lskd:LSKDLoss"),
        options.LskdOptions,
        cites=("sun2024logit",),
    ),
    "mlkd": MethodSpec(
        "kd at several temperatures, with Gram matrices, on two views (Jin et al. 2023)",
        "logits",
        _loss("mlkd:MLKDLoss"),
        options.MlkdOptions,
        cites=("jin2023multi",),
    ),
    "mutual": MethodSpec(
        "the student and a copy of the teacher teach each other (Zhang et al. 2018)",
        "logits",
        _loss("mutual:MutualLoss"),
        options.MutualOptions,
        cites=("zhang2018deep",),
    ),
    "standardize": MethodSpec(
        "the same standardisation for every loss between outputs in a sum",
        "logits",
        _loss("lskd:StandardizeLogits"),
        refuses={"lskd": "its logits are standardised already"},
        joins="logits",
        cites=("sun2024logit",),
    ),
}

_OWN_PATHS = "each has hybrid paths of its own"
_REPLACED_HEAD = "the student's head is the teacher's there"

BUILT_IN: dict[str, MethodSpec] = {
    "iakd": MethodSpec(
        "student blocks are randomly swapped for the teacher's during the training",
        "interactive",
        _loss("iakd:IakdLoss"),
        IakdOptions,
        cites=("fu2021interactive",),
    ),
    "rcn": MethodSpec(
        "channels of a second branch, the teacher's convolution, are swapped in, then both are merged (RCN)",
        "interactive",
        _loss("rcn:RCNLoss"),
        options.RcnOptions,
        refuses={
            other: f"it swaps channels within the student's blocks, which {other} swaps whole"
            for other in ("iakd", "fcfd", "blockkd")
        },
        full_precision="it merges weights of full precision",
        cites=("zhang2022representation",),
    ),
    "scratch": MethodSpec("cross-entropy alone", "reference", needs_teacher=False, alone="it adds no loss"),
    "label_smoothing": MethodSpec(
        "cross-entropy with smoothed labels",
        "reference",
        _loss("label_smoothing:LabelSmoothingLoss"),
        options.LabelSmoothingOptions,
        needs_teacher=False,
        cites=("szegedy2016rethinking",),
    ),
    **_LOGIT_METHODS,
    "fitnet": MethodSpec(
        "the teacher's feature maps at one level, predicted from the student's (Romero et al. 2015)",
        "features",
        _loss("fitnet:FitNetLoss"),
        options.FitnetOptions,
        compares_levels=True,
        cites=("romero2015fitnets",),
    ),
    "at": MethodSpec(
        "the positions of the image at which features are strong (Zagoruyko and Komodakis 2017)",
        "features",
        _loss("at:ATLoss"),
        options.AtOptions,
        compares_levels=True,
        cites=("zagoruyko2017paying",),
    ),
    "nst": MethodSpec(
        "the positions that channels respond to, as a distribution (Huang and Wang 2017)",
        "features",
        _loss("nst:NSTLoss"),
        options.NstOptions,
        compares_levels=True,
        cites=("huang2017like",),
    ),
    "vid": MethodSpec(
        "mutual information between the feature maps of both networks (Ahn et al. 2019)",
        "features",
        _loss("vid:VIDLoss"),
        options.VidOptions,
        compares_levels=True,
        cites=("ahn2019variational",),
    ),
    "ft": MethodSpec(
        "the teacher's last maps, paraphrased in fewer channels (Kim et al. 2018)",
        "features",
        _loss("ft:FTLoss"),
        options.FtOptions,
        cites=("kim2018paraphrasing",),
    ),
    "fsp": MethodSpec(
        "products of successive feature maps, in a first phase (Yim et al. 2017)",
        "features",
        _loss("fsp:FSPLoss"),
        options.FspOptions,
        compares_levels=True,
        cites=("yim2017gift",),
    ),
    "ab": MethodSpec(
        "which neurons are active, in a first phase (Heo et al. 2019)",
        "features",
        _loss("ab:ABLoss"),
        options.AbOptions,
        compares_levels=True,
        cites=("heo2019knowledge",),
    ),
    "reviewkd": MethodSpec(
        "features fused from the last level to the first (Chen et al. 2021)",
        "features",
        _loss("reviewkd:ReviewKDLoss"),
        options.ReviewkdOptions,
        compares_levels=True,
        cites=("chen2021distilling",),
    ),
    "simkd": MethodSpec(
        "the teacher's classifier behind a projector, both of which stay in the student (Chen et al. 2022)",
        "features",
        _loss("simkd:SimKDLoss"),
        options.SimkdOptions,
        refuses=dict.fromkeys(
            ("scratch", "label_smoothing", *_LOGIT_METHODS),
            "its outputs are the teacher's classifier's, not the student's own",
        ),
        one_bit_width="it replaces the student's head, which then would not know the bit-widths",
        cites=("chen2022knowledge",),
    ),
    "srrl": MethodSpec(
        "last features that the teacher's classifier takes for the teacher's (Yang et al. 2021)",
        "features",
        _loss("srrl:SRRLLoss"),
        options.SrrlOptions,
        cites=("yang2021knowledge",),
    ),
    "ot": MethodSpec(
        "an image's feature vectors, moved onto the teacher's by optimal transport (OT-KD)",
        "features",
        _loss("ot:OTLoss"),
        options.OtOptions,
        cites=("feydy2019interpolating",),
    ),
    "hints": MethodSpec(
        "features regressed at the centres of clusters of the teacher's blocks (PURSUhInT)",
        "features",
        _loss("hints:HintLoss"),
        options.HintsOptions,
        cites=("keser2023pursuhint", "kornblith2019similarity"),
    ),
    "hint_points": MethodSpec(
        "the same points for the losses of a sum that compare the ends of stages",
        "features",
        _loss("hints:HintPoints"),
        options.HintPointsOptions,
        refuses={"hints": "it finds its own points, see hints.points"},
        joins="levels",
        cites=("keser2023pursuhint", "kornblith2019similarity"),
    ),
    "fcfd": MethodSpec(
        "features that later blocks of both networks treat alike (Liu et al. 2023)",
        "features",
        _loss("fcfd:FCFDLoss"),
        options.FcfdOptions,
        refuses={**dict.fromkeys(("iakd", "blockkd"), _OWN_PATHS), "simkd": _REPLACED_HEAD},
        cites=("liu2023function",),
    ),
    "blockkd": MethodSpec(
        "outputs of the teacher's last blocks on the student's features (Yu et al. 2024)",
        "features",
        _loss("blockkd:BlockKDLoss"),
        options.BlockkdOptions,
        refuses={"iakd": _OWN_PATHS, "simkd": _REPLACED_HEAD},
        cites=("yu2024decoupling",),
    ),
    "sp": MethodSpec(
        "similarities between the images of a batch, by their last feature maps (Tung and Mori 2019)",
        "relations",
        _loss("sp:SPLoss"),
        options.SpOptions,
        cites=("tung2019similarity",),
    ),
    "cc": MethodSpec(
        "differences from the teacher, uncorrelated between neighbouring images (Peng et al. 2019)",
        "relations",
        _loss("cc:CCLoss"),
        options.CcOptions,
        cites=("peng2019correlation",),
    ),
    "rkd": MethodSpec(
        "distances and angles between images (Park et al. 2019)",
        "relations",
        _loss("rkd:RKDLoss"),
        options.RkdOptions,
        cites=("park2019relational",),
    ),
    "pkt": MethodSpec(
        "similarities to the other images of a batch, as a distribution (Passalis and Tefas 2018)",
        "relations",
        _loss("pkt:PKTLoss"),
        options.PktOptions,
        cites=("passalis2018learning",),
    ),
    "crd": MethodSpec(
        "embeddings contrasted with those of images of other classes (Tian et al. 2020)",
        "relations",
        _loss("crd:CRDLoss"),
        options.CrdOptions,
        cites=("tian2020contrastive",),
    ),
    "kcd": MethodSpec(
        "images that teach the student little are dropped step by step, with any loss (Li et al. 2022)",
        "data",
        _loss("kcd:KCDLoss"),
        options.KcdOptions,
        needs_teacher=False,
        base="kd",
        cites=("li2022knowledge",),
    ),
}


class _Method(Strict):
    """One way to train the student."""

    method: str = Field(description="a method that `iakd methods` lists, or a sum such as iakd+kd; default: the label")
    init: Literal["random", "teacher", "blockwise"] = Field(
        "random",
        description="teacher: start with copies of its stem, head and first block of each group; "
        "blockwise: with blocks that have learned, one by one, what the teacher's compute",
    )
    blockwise: BlockwiseOptions = BlockwiseOptions()
    recipe: dict[str, Any] = Field({}, description="overrides of distill.recipe")
    seeds: int | None = Field(
        None, gt=0, description="train only with the first so many of distill.seeds; default: all"
    )
    tune: Searched = Field(
        {}, description="settings of this method, of its recipe or init, by dotted name, that a study searches"
    )
    iakd: IakdOptions = IakdOptions()

    @property
    def names(self) -> list[str]:
        """The methods that the expression adds up, and what comes along with them: `kcd` alone is kcd+kd."""
        names = self.method.split("+")
        known = [METHODS[name] for name in names if name in METHODS]
        base = next((spec.base for spec in known if spec.base), None)
        has_loss = any(spec.group in LOSS_GROUPS and not spec.joins for spec in known)
        return names if base is None or has_loss else [*names, base]

    @property
    def group(self) -> Group:
        """Where a sum belongs: with those that swap, or else with its method whose group comes last."""
        groups = {METHODS[name].group for name in self.names}
        return "interactive" if "interactive" in groups else max(groups, key=get_args(Group).index)

    @property
    def swaps(self) -> bool:
        """Whether blocks are swapped."""
        return "iakd" in self.names

    @property
    def tunes_schedule(self) -> bool:
        """Whether the schedule comes from a study."""
        return self.swaps and self.iakd.schedule == "tuned"

    @property
    def tuned(self) -> bool:
        """Whether some of the settings come from a study."""
        return self.tunes_schedule or bool(self.tune)

    @property
    def _starts(self) -> set[str]:
        """The initialisation, and others that a study tries."""
        searched = self.tune["init"].choices or [] if "init" in self.tune else []
        return {self.init, *map(str, searched)}

    @property
    def needs_teacher(self) -> bool:
        """Whether training looks at the teacher at all, or does so with some of the settings that a study tries."""
        return self._starts != {"random"} or any(METHODS[name].needs_teacher for name in self.names)

    @property
    def beyond_outputs(self) -> list[str]:
        """The methods of the sum that look at features, or swap blocks."""
        return [name for name in self.names if METHODS[name].group not in OUTPUT_GROUPS]

    def needs_of(self, teacher: Teacher) -> str | None:
        """Return what a training needs that the teacher does not have, and why; None if it has all."""
        if not teacher.black_box:
            return None
        copied = sorted(self._starts - {"random"})
        what = [*self.beyond_outputs, *(f"init: {init}" for init in copied)]
        if what:
            return f"{what[0]} needs blocks or features of the teacher, and of a black box only the outputs are known"
        if "mutual" in self.names and not teacher.trainable:
            return "mutual trains a copy of the teacher, and a program in a file cannot be trained"
        return None

    def options(self, name: str) -> Any:
        """The options of one method of the sum, of the class in its `MethodSpec`; None where it has none."""
        return getattr(self, name, None) if METHODS[name].options else None

    @model_validator(mode="after")
    def _known_names(self) -> "_Method":
        for name in self.names:
            if name in _UNUSABLE:
                raise ValueError(f"method {name!r}: {_UNUSABLE[name]}")
            if name not in METHODS:
                raise ValueError(f"unknown method {name!r}{did_you_mean(name, METHODS)}; known: {', '.join(METHODS)}")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"{self.method!r} names a method twice")
        for name, other in permutations(self.names, 2):
            reason = METHODS[name].alone or METHODS[name].refuses.get(other)
            if reason:
                raise ValueError(f"{self.method!r}: {name} cannot be added to {other}: {reason}")
        for name in self.names:
            changed = changed_methods(name)
            if changed and not set(changed) & set(self.names):
                raise ValueError(f"{self.method!r}: {name} changes other methods; add one of {', '.join(changed)}")
        for name in self.model_fields_set & set(METHODS):
            if name not in self.names:
                raise ValueError(f"has options for {name!r}, which {self.method!r} does not use")
        given = self.options(self.method) if len(self.names) == 1 else None
        weights = given.WEIGHTS if isinstance(given, options.WeightedSum) and not self.tune else ()
        if weights and not any(getattr(given, name) for name in weights):
            raise ValueError(f"{self.method}: {', '.join(weights)} are all 0: nothing would be learned")
        if "blockwise" in self.model_fields_set and self.init != "blockwise":
            raise ValueError(f"has options for 'blockwise', which init: {self.init} does not use; set init: blockwise")
        return self

    def settings(self) -> dict[str, Any]:
        """What the training depends on: the options of the initialisation and of the methods in use, and the search."""
        used = {"method", "init"} | (set(self.names) & set(type(self).model_fields))
        if "blockwise" in self._starts:
            used.add("blockwise")
        if self.tune:
            used.add("tune")
        return self.model_dump(mode="json", include=used)


METHODS, _UNUSABLE = discover("iakd.methods", MethodSpec, BUILT_IN, reserved={*dir(_Method), *_Method.model_fields})

if TYPE_CHECKING:
    Method = _Method
else:  # with a section for the options of each method
    Method = create_model(
        "Method",
        __base__=_Method,
        __doc__=_Method.__doc__,
        __module__=__name__,
        **{name: (spec.options, spec.options()) for name, spec in METHODS.items() if spec.options},
    )


def changed_methods(name: str) -> list[str]:
    """The methods that `name` changes; none for a method that adds terms of its own."""
    return [other for other, spec in METHODS.items() if spec.changed_by(METHODS[name])]


def shortest_sum(name: str) -> str:
    """The method by itself, or added to the first one that it changes."""
    return "+".join([*changed_methods(name)[:1], name])


def listing() -> str:
    """All methods by group, a line each."""
    ordered = sorted(METHODS.items(), key=lambda item: list(GROUP_TITLES).index(item[1].group))
    width = max(map(len, METHODS))
    lines = []
    for group, members in groupby(ordered, key=lambda item: item[1].group):
        lines += [GROUP_TITLES[group], *(f"  {name.ljust(width)}  {spec.summary}" for name, spec in members), ""]
    return "\n".join(lines).rstrip()
