/* TensorRT's plugin interface: from the user's headers where the build found them, else from abi.h.
 *
 * Define MMCOMPILE_TENSORRT_HEADERS=1 for <NvInfer.h> (10.8 or later; it needs CUDA's headers). The
 * library that results is the same: every assertion below holds for both.
 */
#ifndef MMCOMPILE_TRT_TENSORRT_H
#define MMCOMPILE_TRT_TENSORRT_H

#if defined(MMCOMPILE_TENSORRT_HEADERS) && MMCOMPILE_TENSORRT_HEADERS
#if defined(__GNUC__)
#pragma GCC system_header
#endif
#include <NvInfer.h>
#else
#include "abi.h"
#endif

#include <cstddef>

namespace mmcompile::trt {

static_assert(sizeof(nvinfer1::Dims) == 72 && offsetof(nvinfer1::Dims, d) == 8);
static_assert(nvinfer1::Dims::MAX_DIMS == 8);
static_assert(sizeof(nvinfer1::DimsExprs) == 72 && offsetof(nvinfer1::DimsExprs, d) == 8);
static_assert(sizeof(nvinfer1::PluginTensorDesc) == 88);
static_assert(offsetof(nvinfer1::PluginTensorDesc, type) == 72);
static_assert(offsetof(nvinfer1::PluginTensorDesc, format) == 76);
static_assert(offsetof(nvinfer1::PluginTensorDesc, scale) == 80);
static_assert(sizeof(nvinfer1::DynamicPluginTensorDesc) == 304);
static_assert(offsetof(nvinfer1::DynamicPluginTensorDesc, min) == 88);
static_assert(offsetof(nvinfer1::DynamicPluginTensorDesc, max) == 160);
static_assert(offsetof(nvinfer1::DynamicPluginTensorDesc, opt) == 232);
static_assert(sizeof(nvinfer1::PluginField) == 24);
static_assert(offsetof(nvinfer1::PluginField, data) == 8);
static_assert(offsetof(nvinfer1::PluginField, type) == 16);
static_assert(offsetof(nvinfer1::PluginField, length) == 20);
static_assert(sizeof(nvinfer1::PluginFieldCollection) == 16);
static_assert(offsetof(nvinfer1::PluginFieldCollection, fields) == 8);
static_assert(sizeof(nvinfer1::InterfaceInfo) == 16);
static_assert(offsetof(nvinfer1::InterfaceInfo, major) == 8);
static_assert(sizeof(nvinfer1::IDimensionExpr) == 16 && sizeof(nvinfer1::IExprBuilder) == 16);
static_assert(sizeof(nvinfer1::IPluginV3) == 8 && sizeof(nvinfer1::IPluginV3OneCore) == 8);
static_assert(sizeof(nvinfer1::IPluginV3OneBuild) == 8);
static_assert(sizeof(nvinfer1::IPluginV3OneRuntime) == 8);
static_assert(sizeof(nvinfer1::IPluginCreatorV3One) == 8);
static_assert(static_cast<int>(nvinfer1::DataType::kFLOAT) == 0);
static_assert(static_cast<int>(nvinfer1::DataType::kHALF) == 1);
static_assert(static_cast<int>(nvinfer1::DataType::kINT8) == 2);
static_assert(static_cast<int>(nvinfer1::DataType::kINT32) == 3);
static_assert(static_cast<int>(nvinfer1::DataType::kBF16) == 7);
static_assert(static_cast<int>(nvinfer1::TensorFormat::kLINEAR) == 0);
static_assert(static_cast<int>(nvinfer1::TensorRTPhase::kRUNTIME) == 1);
static_assert(static_cast<int>(nvinfer1::PluginCapabilityType::kRUNTIME) == 2);
static_assert(static_cast<int>(nvinfer1::PluginFieldType::kFLOAT32) == 1);
static_assert(static_cast<int>(nvinfer1::PluginFieldType::kINT32) == 5);
static_assert(static_cast<int>(nvinfer1::PluginFieldType::kINT64) == 10);

}  // namespace mmcompile::trt

#endif
