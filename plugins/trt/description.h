/* Text about a layer that TensorRT stores: the timing cache's key and the engine's metadata. */
#ifndef MMCOMPILE_TRT_DESCRIPTION_H
#define MMCOMPILE_TRT_DESCRIPTION_H

#include <string>

#include "fields.h"
#include "linear.h"

namespace mmcompile::trt {

/* Equal for layers that take equal time: sizes, formats, types and the tiles that the tactics are
 * numbers of; TensorRT adds the shapes and the GPU. Thresholds and scales are values only. */
std::string timing_cache_id(const LayerFields& fields, const CallShape& shape,
                            const MmcDevice& device);

/* "K=4096 N=11008: 2048 mxfp4, 1024 mxfp6_e2m3, 1024 mxfp8"; a segment whose formats differ is
 * written activation x weight. Sizes are left out where `shape` is NULL. */
std::string metadata(const LayerFields& fields, const CallShape* shape);

}  // namespace mmcompile::trt

#endif
