"""Everything that is measured of one model."""

from typing import Any

from iakd import models
from iakd.data.sets import image_set
from iakd.data.store import Store
from iakd.evaluation import metrics
from iakd.evaluation.speed import speed
from iakd.models import Network
from iakd.models.cost import cost
from iakd.models.normalisation import adapt_input
from iakd.params import Normalisation, Params
from iakd.training import device as devices
from iakd.training.evaluation import predict


def measure(
    params: Params, model: Network, normalisation: Normalisation | None, content: bytes, origin: str, store: Store
) -> dict[str, Any]:
    """Accuracy, calibration, cost and speed of `model` with the weights `content` on the test split, and the device
    they were measured on. `normalisation` is that of the images that these weights know; None: the data set's.
    Bit-identical from run to run on the CPU, but for the two speeds.

    Raises UserError, naming `origin`, where the weights do not fit.
    """
    device = devices.set_up(params.compute)
    models.load_weights(model, content, origin)
    adapt_input(model, normalisation, store.mean, store.std)
    model.to(device)
    test = image_set(store, "test", device, workers=params.compute.workers)
    batch_size = params.evaluate.batch_size
    logits, labels = predict(model, test, batch_size)
    return {
        **metrics.measure(logits.cpu().numpy(), labels.cpu().numpy()),
        **cost(model, store.image_shape),
        **speed(model, next(test.plain(batch_size)).images, params.evaluate.latency_runs),
        "device": devices.describe(device),
    }
