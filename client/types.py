"""What travels between client and service, as frozen models.

Fields that a newer service adds are ignored, so that an older client goes on working.
"""

from client.wire.datasets import Dataset as Dataset
from client.wire.datasets import DatasetDetail as DatasetDetail
from client.wire.datasets import ImageSize as ImageSize
from client.wire.datasets import ImageSizes as ImageSizes
from client.wire.forecasts import Forecast as Forecast
from client.wire.forecasts import ForecastBasis as ForecastBasis
from client.wire.forecasts import ForecastLayer as ForecastLayer
from client.wire.health import Health as Health
from client.wire.jobs import EpochProgress as EpochProgress
from client.wire.jobs import Job as Job
from client.wire.jobs import JobEvent as JobEvent
from client.wire.jobs import JobPage as JobPage
from client.wire.jobs import JobState as JobState
from client.wire.jobs import LayerProgress as LayerProgress
from client.wire.jobs import ModelReference as ModelReference
from client.wire.models import Aliases as Aliases
from client.wire.models import AliasSet as AliasSet
from client.wire.models import Model as Model
from client.wire.models import ModelVersion as ModelVersion
from client.wire.predictions import Label as Label
from client.wire.predictions import Prediction as Prediction
from client.wire.predictions import Predictions as Predictions
from client.wire.problems import Problem as Problem
from client.wire.reports import Accuracy as Accuracy
from client.wire.reports import Agreement as Agreement
from client.wire.reports import Confidence as Confidence
from client.wire.reports import Gate as Gate
from client.wire.reports import Latency as Latency
from client.wire.reports import LayerLoss as LayerLoss
from client.wire.reports import Report as Report
from client.wire.reports import Size as Size
from client.wire.specs import CompressSpec as CompressSpec
from client.wire.specs import InputShape as InputShape
from client.wire.specs import Scalar as Scalar
from client.wire.specs import Value as Value
