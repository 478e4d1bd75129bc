"""Operators of ONNX that a model may use: of the standard domains, without loops, chance or sequences of tensors.

`Loop` and `Scan` decide at run time how long they run, and `Random*` gives no answer twice. What makes a tensor of a
size that stands in the model is in `SIZED`: there the check of the graph looks at the size.
"""

from __future__ import annotations

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")

ML = frozenset(
    """
    ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer Imputer LabelEncoder
    LinearClassifier LinearRegressor Normalizer OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsemble
    TreeEnsembleClassifier TreeEnsembleRegressor ZipMap
    """.split()  # noqa: SIM905 - words read best as words
)

PLAIN = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift
    BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Compress Concat Constant Conv Cos
    Cosh CumSum DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Flatten Floor
    GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
    GroupNormalization HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization MatMul MatMulInteger Max
    MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonZero Not Or PRelu Pow QLinearMatMul
    QuantizeLinear RNN Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round ScatterElements ScatterND Selu Shape Shrink Sigmoid
    Sign Sin Sinh Size Slice Softmax Softplus Softsign Split Sqrt Squeeze StringConcat StringNormalizer
    StringSplit Sub Sum Tan Tanh TfIdfVectorizer ThresholdedRelu TopK Transpose Trilu Unique Unsqueeze Where Xor
    """.split()  # noqa: SIM905 - words read best as words
)

SIZED = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Pad": 1, "OneHot": 1}
"""Operator -> which of its inputs says how large its result is."""


def is_known(domain: str, name: str) -> bool:
    """Whether a model may use it."""
    return name in ML if domain == "ai.onnx.ml" else name in PLAIN or name in SIZED
