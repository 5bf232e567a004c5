"""Settings: one definition, one clear line for each mistake."""

from pathlib import Path

import pytest
import yaml

from iakd.config import Network, Params, Teacher, load, parse, schema_text
from iakd.errors import UserError

ROOT = Path(__file__).parent.parent
DEFAULT = ROOT / "params.yaml"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("distil.recipe.lr=1", "distil: unknown key (did you mean 'distill'?)"),
        ("distill.recipe.lrr=1", "distill.recipe.lrr: unknown key (did you mean 'lr'?)"),
        ("methods.kd.kd.temprature=3", "methods.kd.kd.temprature: unknown key (did you mean 'temperature'?)"),
        ("methods.kd.recipe.ephochs=3", "methods.kd.recipe.ephochs: unknown key (did you mean 'epochs'?)"),
        (
            "methods.iakd-linear.iakd.schedule.solo=0.2",
            "methods.iakd-linear.iakd.schedule.solo: unknown key (did you mean 'student_only'?)",
        ),
        ("tune.space.solo=[0.0, 0.5]", "tune.space.solo: unknown key (did you mean 'student_only'?)"),
        ("teachers.0.widht=8", "teachers.0.widht: unknown key (did you mean 'width'?)"),
        ("methods.new.method=ikad", "unknown method 'ikad' (did you mean 'iakd'?); known: iakd, "),
        ("methods.kd.iakd.stem=teacher", "methods.kd: has options for 'iakd', which 'kd' does not use"),
        ("methods.new.method=kd+kd", "names a method twice"),
        (
            "methods.new={method: kd, kd: {ce_weight: 0, kd_weight: 0}}",
            "kd: ce_weight, kd_weight are all 0",
        ),
        ("methods.new={method: dkd, dkd: {ce_weight: 0, alpha: 0, beta: 0}}", "ce_weight, alpha, beta are all 0"),
        ("methods.new.method=scratch+kd", "scratch cannot be added to kd: it adds no loss"),
        ("dataset.val=many", "dataset.val: Input should be a valid integer"),
        ("dataset.val=-1", "dataset.val: Input should be greater than 0, got -1"),
        ("distill.recipe.lr=fast", "distill.recipe.lr: Input should be a valid number"),
        ("distill.recipe.lr_schedule.milestones=[0.7, 0.4]", "must ascend"),
        ("pairs=[[resnet20w8, resnet8]]", "pairs: no network 'resnet8' (did you mean 'resnet8w8'?)"),
        (
            "pairs=[{teacher: resnet20w8, student: resnet8w8, methods: {scrach: {}}}]",
            "no method 'scrach' (did you mean 'scratch'?)",
        ),
        (
            "pairs=[{teacher: resnet20w8, student: resnet8w8, methods: {kd: {kd: {temperatur: 2}}}}]",
            "resnet20w8-resnet8w8: methods.kd.kd.temperatur: unknown key (did you mean 'temperature'?)",
        ),
        (
            "pairs=[{teacher: resnet20w8, student: resnet8w8, recipe: {epoch: 2}}]",
            "resnet20w8-resnet8w8: recipe, or methods.scratch.recipe.epoch: unknown key (did you mean 'epochs'?)",
        ),
        ("tune.space.p0=[0.9, 0.1]", "p0: low 0.9 is above high 0.1"),
        ("tune.space.p0=[0.1, 1.5]", "tune.space.p0"),
        ("dataset.name=a/b", "dataset.name: may consist of A–Z, a–z, 0–9, _ and . only"),
        ("students=[]", "students: List should have at least 1 item"),
        ("students=[{arch: resnet8}, {arch: resnet8}]", "two are called 'resnet8'"),
        (
            "students=[{arch: resnet8, name: A}, {arch: resnet8, name: a}]",
            "students: two are called 'A' and 'a', one folder",
        ),
        ("methods.KD={method: kd}", "methods: two are called 'kd' and 'KD', one folder where case does not count"),
        ("methods={Exported.json: {method: kd}}", "methods: 'Exported.json' may be the name of a file"),
        ("distill.seeds=[1, 010]", "line 1: 010 is a number to base 8 or 60 in YAML"),
        ("report.title=12:30", "or the colon, or in quotes for a text"),
        ("students.0.bits=9", "students.0.bits: must be from 2 to 8, not 9"),
        ("students.0.bits=[2, 2]", "students.0.bits: a list names different numbers, at least two, not [2, 2]"),
        ("students.0.bits=[4]", "students.0.bits: a list names different numbers, at least two, not [4]"),
        ("students.0.bits=few", "students.0.bits: must be a whole number or a list of them, not 'few'"),
        ("teachers.0.bits=[4, 8]", "teachers.0: bits: a teacher computes with one number of bits, not with [4, 8]"),
        ("methods=[kd]", "methods: Input should be a valid dictionary"),
        ("compute.device=gpu", "compute.device: Input should be 'auto', 'cpu' or 'cuda', got 'gpu'"),
        ("compute={processes: 2, seeds_together: 2}", "compute: processes split one training"),
        ("teachers.5.width=8", "'5' is not a position in a list of 1"),
        ("distill.seeds.²=8", "'²' is not a position in a list of 5"),
        (
            "pairs=[{teacher: resnet20w8, student: resnet8w8, methods: {kd: {seeds: 1}}}]",
            "pairs: resnet20w8-resnet8w8: all pairs have the same seeds; set methods.kd.seeds",
        ),
        ("methods.kd.seeds=0", "methods.kd.seeds: Input should be greater than 0, got 0"),
        ("distill.seeds=[0, 0, 1]", "distill.seeds: names 0 twice"),
        ("teach.seeds=[1, 1.0]", "teach.seeds: names 1 twice"),
        ("distill.seeds=[true]", "distill: seeds: got true, which is neither a number nor a text"),
        ("distill.recipe.epochs=true", "distill.recipe: epochs: got true"),
        ("dataset.size=true", "dataset: size: got true"),
        ("report.references=[kd, kd]", "report.references: names 'kd' twice"),
        ("pairs=[[resnet20w8, resnet8w8], [resnet20w8, resnet8w8]]", "pairs: names resnet20w8-resnet8w8 twice"),
        ("pairs=[]", "pairs: List should have at least 1 item"),
        ("distill={seeds: [0], seeds: [1]}", "line 1: the key 'seeds' is there twice"),
        ("dataset.name='..'", "dataset.name: may consist of A–Z, a–z, 0–9, _ and . only"),
        ("dataset.name='.'", "dataset.name: may consist of A–Z, a–z, 0–9, _ and . only"),
        ("teachers.0.name='..'", "teachers.0.name: may consist of A–Z, a–z, 0–9, _ and . only"),
        ("methods={..: {method: kd}}", "methods"),
        pytest.param(f"dataset.name={'a' * 101}", "dataset.name: String should have at most 100 characters", id="long"),
        ('report.title="a\\0b"', "report: title: contains a character that no file can hold, got 'a\\x00b'"),
        ('dataset.path="\\ud800"', "dataset.path: Input should be a valid string, unable to parse"),
        ("distill.recipe.lr=.inf", "distill.recipe.lr: Input should be a finite number"),
        ("methods.kd.kd.temperature=.nan", "methods.kd.kd.temperature: Input should be a finite number"),
        ("methods.kd.kd.kd_weight=1e39", "methods.kd.kd: kd_weight: must be 0, or from 1e-30 to 1e+30 in size"),
        ("distill.recipe.augment.mixup={alpha: .inf}", "distill.recipe.augment.mixup.alpha: Input should be a finite"),
        ("methods.kd-tuned.tune.kd.temperature=[4.0, .inf]", "kd.temperature.high: Input should be a finite number"),
        ("methods.kd-tuned.tune.kd.temperature={choices: [4.0, .nan]}", "choices: must be a finite number"),
        ("tune.trials=3000000000", "tune: trials: must be at most 2,147,483,647"),
        ("methods.kd-tuned.tune={kd.temperature: [4.0]}", "methods.kd-tuned.tune: nothing to search"),
        ("methods.kd-tuned.tune={kd.temperature: [4.0, 4.0]}", "methods.kd-tuned.tune: nothing to search"),
        ("tune.space.steepness=[4, 1420]", "steepness: Input should be less than or equal to 1000"),
        (
            "methods.iakd-linear.iakd.schedule.steepness=1e-17",
            "iakd-linear.iakd.schedule.steepness: Input should be",
        ),
        ("tune.pruner.wilcoxon=1e-30", "pruner.wilcoxon: 1e-30 can never be reached with 3 seeds"),
        (
            "methods.new={method: iakd, iakd: {stem: teacher, head: teacher, at_least_one_student: false}}",
            "methods.new.iakd: at_least_one_student: false leaves nothing to train",
        ),
        ("distill.recipe.batch_size=1", "distill.recipe.batch_size: Input should be greater than or equal to 2"),
        ("distill.recipe={nesterov: true, momentum: 0}", "distill.recipe: nesterov needs a momentum above 0"),
        ("methods.kd.recipe={nesterov: true, momentum: 0.0}", "methods.kd.recipe.nesterov needs a momentum above 0"),
        ("teach.recipe.augment.crop=resized", "teach.recipe.augment.crop: resized needs the images in their full size"),
        ("methods.kd.recipe.augment.crop=resized", "methods.kd.recipe.augment.crop: resized needs the images"),
        ("methods.new.method=rcn+fcfd", "rcn cannot be added to fcfd: it swaps channels within the student's blocks"),
        ("dataset={source: image_folder, path: ~nosuchuser/x}", "path: '~nosuchuser/x': this machine has no such user"),
        ("teachers=[{arch: resnet8, checkpoint: ~nosuchuser/x}]", "'~nosuchuser/x': this machine has no such user"),
        ("dataset.source={}", "dataset.source: Input should be a valid string"),
        ("dataset.source=[digits]", "dataset.source: Input should be a valid string"),
        ("distill.recipe.lr=!!float x", "not valid YAML: could not convert string to float: 'x'"),
        ("report.title=!!timestamp 2020-13-45", "not valid YAML"),
        ("report.title=!!binary aGk=", "not valid YAML"),
        pytest.param(f"distill.recipe.epochs={'9' * 5000}", "not valid YAML", id="5,000 digits"),
        pytest.param(f"distill.recipe.epochs=0x{'f' * 5000}", "got a number of thousands of digits", id="hexadecimal"),
        pytest.param(f"report.title={'[' * 5000}", "more than 32 sections within each other", id="5,000 lists"),
        pytest.param(f"a{'.a' * 5000}=1", "more than 32 sections within each other", id="5,000 sections"),
        ("report=&a {title: *a}", "or one that contains itself"),
        ("nonsense", "expected key=value"),
        ("distill.recipe.lr=[", "not valid YAML"),
    ],
)
def test_a_mistake_is_one_clear_line(change: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(DEFAULT, [change])
    message = str(caught.value)
    assert words in message
    assert "params.yaml" in message or change[:100] in message
    assert "\n" not in message and len(message) < 700


def test_changes_reach_nested_settings() -> None:
    params = load(
        DEFAULT, ["distill.recipe.lr=0.2", "teachers.0.width=4", "methods.kd.kd.temperature=2", "distill.seeds=[7]"]
    )
    assert params.distill.recipe.lr == 0.2
    assert params.teachers[0].name == "resnet20w4"
    assert params.methods["kd"].kd.temperature == 2
    assert params.distill.seeds == [7]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [1", "is not valid YAML"),
        ("- 1", "expected settings"),
        ("", "expected settings"),
        ("\x00", "not valid YAML"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        load(path)
    with pytest.raises(UserError, match=r"absent\.yaml does not exist"):
        load(tmp_path / "absent.yaml")


def test_a_key_that_is_there_twice_is_found_in_a_file_but_a_merged_section_may_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    networks = "teachers: [{arch: resnet20}]\nstudents: [{arch: resnet8}]\nmethods: {kd: {}}\n"
    path.write_text(networks + "distill:\n  recipe: {epochs: 3}\n  seeds: [0]\n  recipe: {lr: 1}\n")
    with pytest.raises(UserError, match=r"line 7: the key 'recipe' is there twice"):
        load(path)
    path.write_text(networks + "teach: &t {recipe: {epochs: 3, lr: 1}}\ndistill: {<<: *t, recipe: {epochs: 4}}\n")
    assert (load(path).teach.recipe.epochs, load(path).distill.recipe.epochs) == (3, 4)


def test_a_change_of_one_section_leaves_others_that_share_its_text_alone(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    networks = "teachers: [{arch: resnet20}]\nstudents: [{arch: resnet8}]\nmethods: {kd: {}}\n"
    path.write_text(networks + "teach: {recipe: &r {epochs: 3, augment: {pad: 1}}}\ndistill: {recipe: *r}\n")
    params = load(path, ["distill.recipe.epochs=4", "distill.recipe.augment.pad=2"])
    assert (params.distill.recipe.epochs, params.distill.recipe.augment.pad) == (4, 2)
    assert (params.teach.recipe.epochs, params.teach.recipe.augment.pad) == (3, 1)


def test_numbers_and_texts_are_read_as_people_write_them() -> None:
    """YAML 1.1 takes 1e-3 for a text, so that a range would be two choices, and a date for something else."""
    params = load(DEFAULT, ["methods.kd-tuned.tune.recipe.lr=[1e-3, 1e-1]", "report.title=2026-11-27"])
    searched = params.methods["kd-tuned"].tune["recipe.lr"]
    assert (searched.choices, searched.low, searched.high) == (None, 0.001, 0.1)
    assert params.report.title == "2026-11-27"


def test_a_methods_recipe_differs_only_where_it_says_so() -> None:
    params = load(DEFAULT, ["methods.kd.recipe.lr_schedule.gamma=0.5"])
    recipe = params.student_recipe(params.paired[0], params.methods["kd"])
    assert recipe.lr_schedule.gamma == 0.5
    assert recipe.lr_schedule.milestones == params.distill.recipe.lr_schedule.milestones
    assert recipe.epochs == params.distill.recipe.epochs


def test_the_label_is_the_method_unless_said_otherwise() -> None:
    raw = {
        "teachers": [{"arch": "resnet20"}],
        "students": [{"arch": "resnet8"}],
        "methods": {"iakd+kd": None, "x": {"method": "kd"}},
    }
    methods = parse(raw, "here").methods
    assert methods["iakd+kd"].names == ["iakd", "kd"] and methods["x"].names == ["kd"]


def test_bit_widths_are_a_set_and_one_number_of_bits_stays_what_it_was() -> None:
    several, same = (Network(arch="resnet20", bits=bits) for bits in ([8, 2, 4], [2, 4, 8]))
    assert several == same and several.name == "resnet20_2_4_8bit" and several.bit_widths == [8, 4, 2]
    one = Network(arch="resnet20", bits=4)
    assert (one.name, one.model_dump()["bits"], one.bit_widths) == ("resnet20_4bit", 4, [])


def test_the_schema_in_the_repository_is_the_models() -> None:
    assert (ROOT / "workflow/schemas/params.schema.json").read_text() == schema_text(), "run `make schema`"


def test_the_short_default_experiment_says_the_same_as_params_yaml() -> None:
    assert load(ROOT / "experiments/digits.yaml") == load(DEFAULT)


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_can_be_read(path: Path) -> None:
    assert isinstance(load(path), Params)


def test_params_yaml_shows_every_section_and_explains_it() -> None:
    text = DEFAULT.read_text()
    assert set(yaml.safe_load(text)) == set(Params.model_fields)
    for section in text.split("\n\n")[1:]:
        assert "#" in section or section.startswith("evaluate"), section


# --- teachers of the user's own ---


def test_a_checkpoint_is_a_setting_of_teachers_alone() -> None:
    raw = {"teachers": [{"arch": "resnet20"}], "students": [{"arch": "resnet8"}], "methods": {"kd": {}}}
    with pytest.raises(UserError, match=r"students\.0\.checkpoint: unknown key"):
        parse({**raw, "students": [{"arch": "resnet8", "checkpoint": "x.pth"}]}, "here")
    with pytest.raises(UserError, match="normalisation is a setting of a teacher with a `checkpoint`"):
        parse({**raw, "teachers": [{"arch": "resnet20", "normalisation": "half"}]}, "here")
    with pytest.raises(UserError, match="is for an arch torchvision/…, not for resnet20"):
        parse({**raw, "teachers": [{"arch": "resnet20", "checkpoint": "torchvision:IMAGENET1K_V1"}]}, "here")
    with pytest.raises(UserError, match="std"):
        parse(
            {**raw, "teachers": [{"arch": "resnet20", "checkpoint": "x", "normalisation": {"mean": [0], "std": [0]}}]},
            "here",
        )


def test_a_trained_teacher_has_the_identity_that_it_had() -> None:
    assert Teacher(arch="resnet20", width=8).model_dump() == Network(arch="resnet20", width=8).model_dump()
    imported = Teacher(arch="resnet20", checkpoint="x.pth", normalisation="half").model_dump()
    assert imported["checkpoint"] == "x.pth" and imported["normalisation"] == "half"


def test_torchvisions_weights_bring_their_normalisation() -> None:
    from torchvision.models import get_model_weights

    from iakd.models.external.torchvision import PARTITIONS

    for name in PARTITIONS:
        for weights in get_model_weights(name):
            teacher = Teacher(arch=f"torchvision/{name}", checkpoint=f"torchvision:{weights.name}")
            published = weights.transforms()
            assert teacher.own_normalisation.of_channels(3) == (published.mean, published.std), (name, weights)


def message(settings: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(yaml.safe_load(settings), "x.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    settings = """
        dataset: {val: -1, size: 8}
        teachers: [{arch: resnet8, widht: 2}]
        methods: {kd: {kd: {temprature: 3}}, other: {method: nothing}}
        distill: {recipe: {lr: fast, epochs: 0}}
        tune: {space: {p0: [0.9, 0.1]}, trials: many}
        reprot: {}
    """
    said = message(settings)
    assert said.startswith("x.yaml: 10 mistakes: (1) ")
    for words in (
        "dataset.val: Input should be greater than 0, got -1",
        "teachers.0.widht: unknown key (did you mean 'width'?)",
        "students: Field required",
        "methods.kd.kd.temprature: unknown key (did you mean 'temperature'?)",
        "methods.other",
        "distill.recipe.lr: Input should be a valid number",
        "distill.recipe.epochs: Input should be greater than 0, got 0",
        "tune.space: p0: low 0.9 is above high 0.1",
        "tune.trials: Input should be a valid integer",
        "reprot: unknown key (did you mean 'report'?)",
    ):
        assert f") {words}" in said, words


def test_mistakes_across_sections_are_told_at_once() -> None:
    base = "{teachers: [{arch: resnet20}], students: [{arch: resnet8}], methods: {scratch: {}, kd: {}}, "
    said = message(base + "pairs: [[resnet2, resnet8], [resnet20, resnet9]]}")
    assert "2 mistakes: (1) pairs: no network 'resnet2'" in said and "(2) pairs: no network 'resnet9'" in said
    said = message(base + "only: {methods: [kdd]}, distill: {recipe: {augment: {crop: resized}}}}")
    assert "2 mistakes: (1) distill.recipe.augment.crop: resized needs" in said and "(2) only.methods: 'kdd'" in said


def test_of_a_union_one_mistake_is_told() -> None:
    base = "{teachers: [{arch: resnet20}], students: [{arch: resnet8}], methods: {kd: {}}, "
    assert message(base + "distill: {recipe: {class_weights: {a: 0}}}}").endswith(
        "x.yaml: distill.recipe.class_weights.a: Input should be greater than 0, got 0"
    )
    assert "mistakes" not in message(base + "pairs: [{teacher: resnet20, student: resnet8, recipes: {}}]}")


def test_only_so_many_mistakes_are_told() -> None:
    keys = "".join(f"key{number}: 1, " for number in range(30))
    said = message("{teachers: [{arch: resnet20}], students: [{arch: resnet8}], methods: {kd: {}}, " + keys + "}")
    assert "30 mistakes: (1) key0: unknown key" in said and said.endswith("(20) key19: unknown key; … (10 more)")
