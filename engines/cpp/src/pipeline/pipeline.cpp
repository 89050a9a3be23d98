#include "star/pipeline.hpp"

#include <mutex>

#include "pipeline/backends.hpp"
#include "pipeline/generation.hpp"

namespace star {

struct Pipeline::Parts {
  Parts(const Bundle& bundle, const Options& options)
      : requests(bundle), session(open_session(bundle, options)), steps(*session) {}

  Requests requests;
  std::unique_ptr<Session> session;
  Steps steps;
  std::mutex running;  // the KV caches are shared
};

Pipeline Pipeline::open(const std::filesystem::path& folder, const Options& options) {
  check_options(options);
  return Pipeline(std::make_unique<Parts>(open_bundle(folder, options.verify), options));
}

Pipeline::Pipeline(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Pipeline::Pipeline(Pipeline&&) noexcept = default;
Pipeline& Pipeline::operator=(Pipeline&&) noexcept = default;
Pipeline::~Pipeline() = default;

Result Pipeline::generate(std::span<const Image> images, std::string_view prompt, const Settings& settings,
                          const OnText& on_text, const std::stop_token& stop) {
  const Request request = parts_->requests.request(images, prompt, settings);
  Transcript transcript = parts_->requests.transcript(request);
  const std::scoped_lock lock(parts_->running);
  return answer_request(parts_->steps, request, std::move(transcript), on_text, stop);
}

}  // namespace star
