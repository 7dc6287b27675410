// The Python module mmcompile._native: checks arguments and calls pack.h and feedback.h without the
// GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "mmcompile/feedback.h"
#include "mmcompile/pack.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace mmcompile {
namespace {

using Values = nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>;
using Order = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using BytesOut = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ScaleBytes = nb::ndarray<const std::uint8_t, nb::ndim<3>, nb::device::cpu>;
using ScaleBytesOut = nb::ndarray<std::uint8_t, nb::ndim<3>, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using FloatVector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using StridedBytesOut = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::device::cpu>;
using StridedFloatsOut = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using SegmentList = std::vector<std::tuple<std::int64_t, int, std::optional<double>>>;

template <class... Parts>
void require(bool condition, const Parts&... message) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << message);
  throw std::invalid_argument(text.str());
}

template <class Array>
void require_shape(const Array& array, const char* name, std::int64_t rows, std::int64_t columns) {
  const auto has_rows = static_cast<std::int64_t>(array.shape(0));
  const auto has_columns = static_cast<std::int64_t>(array.shape(1));
  require(has_rows == rows && has_columns == columns, name, " has shape [", has_rows, ", ",
          has_columns, "], needed is [", rows, ", ", columns, "]");
}

// The scales of some rows, which may be a part of a larger array: only words may lie apart.
template <class Byte, class Array>
ScaleArray<Byte> checked_scales(const Array& array, std::int64_t words, std::int64_t rows) {
  std::int64_t shape[3];
  for (std::size_t axis = 0; axis < 3; ++axis)
    shape[axis] = static_cast<std::int64_t>(array.shape(axis));
  require(shape[0] == words && shape[1] == rows && shape[2] == kScaleWord, "scales has shape [",
          shape[0], ", ", shape[1], ", ", shape[2], "], needed is [", words, ", ", rows, ", ",
          kScaleWord, "]");
  require(rows == 0 || (array.stride(2) == 1 && (rows == 1 || array.stride(1) == kScaleWord)),
          "scales: the rows of a word are not contiguous");
  return {array.data(), array.stride(0)};
}

void require_threads(int threads) {
  require(threads >= 1, "threads is ", threads, ", needed is at least 1");
}

float checked_tensor_scale(double tensor_scale) {
  int exponent = 0;
  const bool power_of_two = std::frexp(tensor_scale, &exponent) == 0.5;
  require(power_of_two && std::abs(exponent - 1) <= 100, "tensor_scale ", tensor_scale,
          " is no power of two in 2^-100..2^100");
  return static_cast<float>(tensor_scale);
}

std::vector<Segment> checked_segments(const SegmentList& list) {
  std::vector<Segment> segments;
  for (const auto& [channels, format, threshold] : list) {
    const std::size_t s = segments.size();
    require(channels > 0 && channels % kSegmentStep == 0, "segment ", s, ": ", channels,
            " channels are no positive multiple of ", kSegmentStep);
    require(format >= 0 && format < kFormatCount, "segment ", s, ": format id ", format,
            " is not in 0..", kFormatCount - 1);
    const double limit = threshold.value_or(kHighestThreshold);
    require(limit >= kLowestThreshold && limit <= kHighestThreshold, "segment ", s, ": threshold ",
            limit, " is outside [1, 2]");
    segments.push_back({channels, format, threshold_carry(limit), !threshold.has_value()});
  }
  return segments;
}

std::span<const std::int32_t> checked_order(const Order& order, std::int64_t channels,
                                            const std::vector<Segment>& segments) {
  require(channels >= 1, "there are no input channels");
  const std::span<const std::int32_t> span(order.data(), order.shape(0));
  const std::int64_t needed = Layout{span, segments, 1.0f}.channels();
  require(static_cast<std::int64_t>(span.size()) == needed, "order has ", span.size(),
          " channels, the segments have ", needed);
  for (std::size_t c = 0; c < span.size(); ++c)
    require(span[c] >= kPadding && span[c] < channels, "order[", c, "] is ", span[c],
            ", needed is -1..", channels - 1);
  return span;
}

ValueType value_type(const Values& values, bool bf16) {
  if (bf16) {
    require(values.dtype() == nb::dtype<std::uint16_t>(), "bf16 weights are passed as uint16");
    return ValueType::kBfloat16;
  }
  if (values.dtype() == nb::dtype<float>()) return ValueType::kFloat32;
  const bool half =
      values.dtype().code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) &&
      values.dtype().bits == 16 && values.dtype().lanes == 1;
  require(half, "weights are float32, float16 or, with bf16=True, uint16");
  return ValueType::kFloat16;
}

ValueMatrix value_matrix(const Values& values, bool channels_first, bool bf16) {
  const int row_axis = channels_first ? 1 : 0;
  const int channel_axis = 1 - row_axis;
  return {values.data(),
          value_type(values, bf16),
          static_cast<std::int64_t>(values.shape(row_axis)),
          static_cast<std::int64_t>(values.shape(channel_axis)),
          values.stride(row_axis),
          values.stride(channel_axis)};
}

// A new numpy array; numpy asks for huge pages, which saves much of a large array's first touch.
nb::object new_array(std::int64_t rows, std::int64_t columns, const char* type) {
  return nb::module_::import_("numpy").attr("empty")(nb::make_tuple(rows, columns), type);
}

nb::object py_quantize_pack(const Values& weight, bool channels_first, const Order& order,
                            const SegmentList& segment_list, double tensor_scale,
                            const BytesOut& codes, const ScaleBytesOut& scales, int threads,
                            bool bf16, const std::string& instruction_set) {
  const ValueMatrix matrix = value_matrix(weight, channels_first, bf16);
  const std::vector<Segment> segments = checked_segments(segment_list);
  const Layout layout{checked_order(order, matrix.channels, segments), segments,
                      checked_tensor_scale(tensor_scale)};
  require_shape(codes, "codes", matrix.rows, layout.row_bytes());
  const auto scales_out = checked_scales<std::uint8_t>(scales, layout.scale_words(), matrix.rows);
  require_threads(threads);
  std::vector<ErrorSums> sums;
  {
    const nb::gil_scoped_release release;
    sums = quantize_pack(matrix, layout, codes.data(), scales_out, threads, instruction_set);
  }
  nb::object array = new_array(static_cast<std::int64_t>(sums.size()), 2, "float64");
  const auto view = nb::cast<nb::ndarray<double, nb::shape<-1, 2>, nb::device::cpu>>(array);
  for (std::size_t s = 0; s < sums.size(); ++s) {
    view(s, 0) = sums[s].squares;
    view(s, 1) = sums[s].errors;
  }
  return array;
}

void py_dequantize(const Bytes& codes, const ScaleBytes& scales, const SegmentList& segment_list,
                   double tensor_scale, const FloatsOut& out, int threads) {
  const std::vector<Segment> segments = checked_segments(segment_list);
  const auto rows = static_cast<std::int64_t>(codes.shape(0));
  const Layout layout{{}, segments, checked_tensor_scale(tensor_scale)};
  require_shape(codes, "codes", rows, layout.row_bytes());
  const auto scales_in = checked_scales<const std::uint8_t>(scales, layout.scale_words(), rows);
  require_shape(out, "out", rows, layout.channels());
  require_threads(threads);
  const nb::gil_scoped_release release;
  dequantize(codes.data(), scales_in, layout, rows, out.data(), threads);
}

nb::object py_quantize_rows(const Values& x, const Order& order, const SegmentList& segment_list,
                            double tensor_scale, int threads) {
  require(x.dtype() == nb::dtype<float>(), "x is float32");
  const ValueMatrix matrix = value_matrix(x, false, false);
  const std::vector<Segment> segments = checked_segments(segment_list);
  const Layout layout{checked_order(order, matrix.channels, segments), segments,
                      checked_tensor_scale(tensor_scale)};
  require_threads(threads);
  nb::object array = new_array(matrix.rows, layout.channels(), "float32");
  float* values = nb::cast<FloatsOut>(array).data();
  {
    const nb::gil_scoped_release release;
    quantize_rows(matrix, layout, values, threads);
  }
  return array;
}

nb::object py_order_rows(const Values& values, bool channels_first, const Order& order, int threads,
                         bool bf16) {
  const ValueMatrix matrix = value_matrix(values, channels_first, bf16);
  const auto channels = static_cast<std::int64_t>(order.shape(0));
  require(channels > 0 && channels % kSegmentStep == 0, "order has ", channels,
          " channels, needed is a positive multiple of ", kSegmentStep);
  const std::vector<Segment> all = {{channels, 0, 0}};
  const std::span<const std::int32_t> checked = checked_order(order, matrix.channels, all);
  require_threads(threads);
  nb::object array = new_array(matrix.rows, channels, "float32");
  float* out = nb::cast<FloatsOut>(array).data();
  {
    const nb::gil_scoped_release release;
    order_rows(matrix, checked, out, threads);
  }
  return array;
}

// The rows of a view in which only rows may lie apart.
template <class T, class Array>
Rows<T> checked_rows(const Array& array, const char* name, std::int64_t rows,
                     std::int64_t columns) {
  require_shape(array, name, rows, columns);
  require(rows == 0 || columns == 1 || array.stride(1) == 1, name,
          ": the values of a row are not contiguous");
  return {array.data(), array.stride(0)};
}

void py_feedback_panel(const Floats& target, const Floats& weight, const Floats& factor,
                       const FloatVector& loss, int format, double threshold, bool searched,
                       double tensor_scale, const StridedBytesOut& codes, std::int64_t code_offset,
                       const ScaleBytesOut& scales, std::int64_t first_word,
                       std::int64_t first_block, const StridedFloatsOut& error, int threads,
                       const std::string& instruction_set) {
  const auto rows = static_cast<std::int64_t>(target.shape(0));
  const auto channels = static_cast<std::int64_t>(target.shape(1));
  require(channels > 0 && channels <= kPanelChannels && channels % kSegmentStep == 0, "a panel of ",
          channels, " channels, needed is a multiple of ", kSegmentStep, " up to ", kPanelChannels);
  require(static_cast<std::int64_t>(loss.shape(0)) == channels, "loss has ", loss.shape(0),
          " entries, needed are ", channels);
  // A panel is checked like a segment of its channels.
  const std::vector<Segment> segments = checked_segments({{channels, format, threshold}});
  const Panel panel{rows,
                    static_cast<int>(channels),
                    checked_rows<const float>(target, "target", rows, channels),
                    checked_rows<const float>(weight, "weight", rows, channels),
                    checked_rows<const float>(factor, "factor", channels, channels),
                    loss.data()};
  const PanelFormat panel_format{format, segments[0].carry, searched,
                                 checked_tensor_scale(tensor_scale)};
  const auto row_bytes = static_cast<std::int64_t>(codes.shape(1));
  const auto code_rows = checked_rows<std::uint8_t>(codes, "codes", rows, row_bytes);
  const std::int64_t code_bytes = segments[0].code_bytes();
  require(code_offset >= 0 && code_offset <= row_bytes - code_bytes, "codes: ", code_bytes,
          " bytes at offset ", code_offset, " are not inside rows of ", row_bytes);
  const auto words = static_cast<std::int64_t>(scales.shape(0));
  const auto scales_out = checked_scales<std::uint8_t>(scales, words, rows);
  const std::int64_t blocks = channels / kBlockFormats[format].block;
  require(first_word >= 0 && first_word < words && first_block >= 0 &&
              first_block <= (words - first_word) * kScaleWord - blocks,
          "scales: ", blocks, " blocks from block ", first_block, " of word ", first_word,
          " on are not inside ", words, " words");
  const PanelOut out{{code_rows.data + code_offset, code_rows.stride},
                     scales_out.from(first_word, 0),
                     first_block,
                     checked_rows<float>(error, "error", rows, channels)};
  require_threads(threads);
  const nb::gil_scoped_release release;
  feedback_panel(panel, panel_format, out, threads, instruction_set);
}

}  // namespace

NB_MODULE(_native, module) {
  module.doc() = "Packing of weights and emulation of activations, as docs/spec.md defines them.";
  module.def("quantize_pack", &py_quantize_pack, "weight"_a.noconvert(), "channels_first"_a,
             "order"_a.noconvert(), "segments"_a, "tensor_scale"_a, "codes"_a.noconvert(),
             "scales"_a.noconvert(), "threads"_a, "bf16"_a = false, "instruction_set"_a = "");
  module.def("instruction_sets", &instruction_sets);
  module.def("dequantize", &py_dequantize, "codes"_a.noconvert(), "scales"_a.noconvert(),
             "segments"_a, "tensor_scale"_a, "out"_a.noconvert(), "threads"_a);
  module.def("quantize_rows", &py_quantize_rows, "x"_a.noconvert(), "order"_a.noconvert(),
             "segments"_a, "tensor_scale"_a, "threads"_a);
  module.def("order_rows", &py_order_rows, "values"_a.noconvert(), "channels_first"_a,
             "order"_a.noconvert(), "threads"_a, "bf16"_a = false);
  module.def("feedback_panel", &py_feedback_panel, "target"_a.noconvert(), "weight"_a.noconvert(),
             "factor"_a.noconvert(), "loss"_a.noconvert(), "format"_a, "threshold"_a, "searched"_a,
             "tensor_scale"_a, "codes"_a.noconvert(), "code_offset"_a, "scales"_a.noconvert(),
             "first_word"_a, "first_block"_a, "error"_a.noconvert(), "threads"_a,
             "instruction_set"_a = "");
}

}  // namespace mmcompile
