/* The constructor that registers the creator, and the destructor that takes it back. */
#include "registration.h"

#include <mutex>
#include <vector>

#include "creator.h"
#include "loaded.h"
#include "rtx_name.h"

namespace mmcompile::trt {
namespace {

bool register_creator(const LoadedTensorRt& tensorrt) {
  nvinfer1::IPluginCreatorInterface& creator = micromix_linear_creator();
  const char* name_space = micromix_linear_creator().getPluginNamespace();
  switch (tensorrt.shape) {
    case Shape::k10:
      return static_cast<v10::PluginRegistry*>(tensorrt.registry)
          ->registerCreator(creator, name_space);
    case Shape::k11:
      return static_cast<v11::PluginRegistry*>(tensorrt.registry)
          ->registerCreator(creator, name_space);
    case Shape::kUnknown:
      break; /* load the library with loadLibrary instead */
  }
  return false;
}

void deregister_creator(const LoadedTensorRt& tensorrt) {
  nvinfer1::IPluginCreatorInterface& creator = micromix_linear_creator();
  if (tensorrt.shape == Shape::k10) {
    static_cast<v10::PluginRegistry*>(tensorrt.registry)->deregisterCreator(creator);
  } else {
    static_cast<v11::PluginRegistry*>(tensorrt.registry)->deregisterCreator(creator);
  }
}

/* Order at process exit: the registry is a static object of TensorRT's and exists before ours,
 * because our constructor asks for it; so ours is destroyed first and deregisters from a live
 * registry. At dlclose the same destructor runs. In between, the references in LoadedTensorRt keep
 * TensorRT from being unloaded under a registered creator. */
class Registration {
 public:
  Registration() noexcept {
    provide_rtx_name();
    try {
      for (LoadedTensorRt& tensorrt : loaded_tensorrts()) {
        if (register_creator(tensorrt)) registered_.push_back(std::move(tensorrt));
      }
    } catch (...) { /* no memory: TensorRT will not know the plugin and says so */
    }
  }

  ~Registration() { withdraw(); }

  void withdraw() noexcept {
    const std::lock_guard lock(mutex_);
    for (const LoadedTensorRt& tensorrt : registered_) deregister_creator(tensorrt);
    registered_.clear();
  }

 private:
  std::mutex mutex_;
  std::vector<LoadedTensorRt> registered_;
};

Registration registration;

}  // namespace

void withdraw_registration() noexcept {
  registration.withdraw();
}

}  // namespace mmcompile::trt
