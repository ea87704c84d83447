# Generated from envs/matrix.toml by `nox -s lock`; do not edit.
#
#   REVISION=$(git rev-parse HEAD) docker buildx bake -f docker/bake.hcl [ROW ...]
variable "REVISION" {
  default = "unknown"
}

group "default" {
  targets = ["tf451", "tf451-cu128", "tf457", "tf5", "tf5-cu130", "llama31"]
}

target "tf451" {
  context    = "."
  dockerfile = "docker/tf451.Dockerfile"
  tags       = ["zo2:tf451"]
  args       = { REVISION = REVISION }
}

target "tf451-cu128" {
  context    = "."
  dockerfile = "docker/tf451-cu128.Dockerfile"
  tags       = ["zo2:tf451-cu128"]
  args       = { REVISION = REVISION }
}

target "tf457" {
  context    = "."
  dockerfile = "docker/tf457.Dockerfile"
  tags       = ["zo2:tf457"]
  args       = { REVISION = REVISION }
}

target "tf5" {
  context    = "."
  dockerfile = "docker/tf5.Dockerfile"
  tags       = ["zo2:tf5"]
  args       = { REVISION = REVISION }
}

target "tf5-cu130" {
  context    = "."
  dockerfile = "docker/tf5-cu130.Dockerfile"
  tags       = ["zo2:tf5-cu130"]
  args       = { REVISION = REVISION }
}

target "llama31" {
  context    = "."
  dockerfile = "docker/llama31.Dockerfile"
  tags       = ["zo2:llama31"]
  args       = { REVISION = REVISION }
}
