"""The files around the code: container image, compose file, Makefile, the check that CI runs."""

import json
import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def dockerfile() -> list[list[tuple[str, str]]]:
    """Return the Dockerfile's stages, each a list of (instruction, arguments)."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: list[list[tuple[str, str]]] = [[]]
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        instruction, _, arguments = line.strip().partition(" ")
        if instruction == "FROM":
            stages.append([])
        stages[-1].append((instruction, " ".join(arguments.split())))
    return stages


def built() -> Any:
    """Return the settings of the build."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]


def arguments(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [given for name, given in stage if name == instruction]


@pytest.fixture
def compose() -> Any:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_the_image_is_built_in_one_stage_and_run_in_another() -> None:
    head, build, final = dockerfile()
    assert arguments(head, "ARG") == ["PYTHON_VERSION=3.11"]
    assert arguments(build, "FROM") == ["python:${PYTHON_VERSION}-slim AS build"]
    assert arguments(final, "FROM") == ["python:${PYTHON_VERSION}-slim"]
    assert arguments(final, "COPY") == ["--from=build /opt/bitpress /opt/bitpress"]
    assert any("-c constraints.txt" in command for command in arguments(build, "RUN"))


def test_the_index_for_torch_is_empty_unless_given() -> None:
    _, build, _ = dockerfile()
    assert arguments(build, "ARG") == ['TORCH_INDEX=""', 'GPU=""']
    (torch,) = [command for command in arguments(build, "RUN") if "TORCH_INDEX" in command]
    assert torch.startswith('if [ -n "$TORCH_INDEX" ]; then')


def test_the_image_copies_every_package_that_is_installed() -> None:
    packages = set(built()["wheel"]["packages"])
    _, build, _ = dockerfile()
    copied = {name for given in arguments(build, "COPY") for name in given.split()[:-1]}
    needed = packages | {
        "CMakeLists.txt",
        "LICENSE",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
    }
    assert copied == needed
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert allowed == needed


def test_the_image_brings_a_compiler_to_the_build_alone() -> None:
    _, build, final = dockerfile()
    (compiler,) = [run for run in arguments(build, "RUN") if "apt-get" in run]
    assert "apt-get install -y --no-install-recommends g++" in compiler
    (gpu,) = [run for run in arguments(final, "RUN") if "apt-get" in run]
    assert gpu.startswith('if [ -n "$GPU" ]; then')
    # A library that was built outside would count as newer than the one of the image.
    assert "**/*.so" in (ROOT / ".dockerignore").read_text().splitlines()


def test_a_failed_build_of_the_library_does_not_fail_the_install() -> None:
    (override,) = built()["overrides"]
    assert override == {"if": {"failed": True}, "wheel": {"cmake": False}}


def test_the_tools_of_the_build_are_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["build-system"]["requires"] == ["scikit-build-core>=1.1,<2"]
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert pinned >= {"scikit_build_core", "cmake", "ninja", "packaging", "pathspec"}
    # What is given by -c does not reach the environment of its own that pip builds in.
    _, build, _ = dockerfile()
    (install,) = [run for run in arguments(build, "RUN") if ' ".' in run]
    (editable,) = [line for line in made("install").splitlines() if "pip install" in line]
    for command in (install, editable):
        assert "PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt" in command


def test_the_templates_of_pages_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # All that lies in a package is installed, unless git ignores it or it is C++.
    assert built()["wheel"]["exclude"] == ["*.cpp", "*.h", "*.inc"]
    templates = sorted((ROOT / "app/templates").iterdir())
    assert {path.name for path in templates} == {"drawing.html", "report.css", "report.html"}
    if shutil.which("git"):
        ignored = subprocess.run(["git", "check-ignore", *templates], cwd=ROOT, check=False)
        assert ignored.returncode != 0
    assert any(name.startswith("jinja2>=") for name in project["project"]["dependencies"])


def test_the_image_runs_as_nobody_special_and_tells_its_health() -> None:
    *_, final = dockerfile()
    (user,) = arguments(final, "USER")
    assert user == "bitpress"
    assert any("useradd --uid 10001 --user-group" in run for run in arguments(final, "RUN"))
    assert arguments(final, "VOLUME") == ["/data"]
    assert arguments(final, "EXPOSE") == ["8000"]
    (environment,) = arguments(final, "ENV")
    for setting in (
        "BITPRESS_DATA_DIR=/data",
        "BITPRESS_CACHE_DIR=/data/cache",
        "TRITON_CACHE_DIR=/data/cache/triton",
        "BITPRESS_HOST=0.0.0.0",
        "BITPRESS_PORT=8000",
    ):
        assert setting in environment
    assert arguments(final, "ENTRYPOINT") == ['["bitpress"]']
    assert arguments(final, "CMD") == ['["up"]']


def test_the_health_check_follows_the_answer_of_the_service(service_at: Any) -> None:
    *_, final = dockerfile()
    (check,) = arguments(final, "HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert "http://127.0.0.1:8000/health/ready" in command[2]
    for status, healthy in ((200, True), (503, False)):
        with service_at(status) as url:
            script = command[2].replace("http://127.0.0.1:8000", url)
            ran = subprocess.run([*command[:2], script], capture_output=True, check=False)
        assert (ran.returncode == 0) is healthy


def test_the_compose_file_runs_the_service_and_what_watches_it(compose: Any) -> None:
    services = compose["services"]
    assert set(services) == {"app", "worker", "postgres", "prometheus", "grafana"}
    assert services["app"]["command"] == ["serve"]
    assert services["worker"]["command"] == ["worker"]
    assert services["postgres"]["image"].startswith("postgres:")
    assert all(service["restart"] == "unless-stopped" for service in services.values())


def test_app_and_worker_share_image_volume_and_database(compose: Any) -> None:
    app, worker = compose["services"]["app"], compose["services"]["worker"]
    for member in ("build", "image", "volumes", "environment", "depends_on", "init"):
        assert app[member] == worker[member]
    assert app["volumes"] == ["data:/data"]
    assert set(compose["volumes"]) == {"data", "postgres", "prometheus", "grafana"}
    url = app["environment"]["BITPRESS_DATABASE_URL"]
    assert re.fullmatch(
        r"postgresql://bitpress:\$\{POSTGRES_PASSWORD:\?[^}]+\}@postgres:5432/bitpress", url
    )
    assert app["build"]["args"] == {"TORCH_INDEX": "${TORCH_INDEX:-}"}


def test_app_and_worker_get_the_gpu_and_an_image_that_can_use_it(compose: Any) -> None:
    added = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())["services"]
    assert set(added) == {"app", "worker"}
    for service in added.values():
        (gpu,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert gpu == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        assert service["build"] == {"args": {"GPU": "yes"}}
        # Not the image without what a GPU needs, which may be there already.
        assert service["image"] != compose["services"]["app"]["image"]
    _, build, final = dockerfile()
    assert all('GPU=""' in arguments(stage, "ARG") for stage in (build, final))
    (install,) = [run for run in arguments(build, "RUN") if ' ".' in run]
    assert install.endswith('".${GPU:+[gpu]}"')


def test_what_the_gpu_engine_needs_is_tested_with_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert "bitpress[gpu]" in extras["dev"]
    names = {re.split(r"[><=;]", requirement)[0] for requirement in extras["gpu"]}
    assert names == {"triton", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc"}
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert names <= set(pinned)
    # What torch 2.13.0 itself asks for on a GPU machine.
    wanted = {"torch": "2.13.0", "triton": "3.7.1", "nvidia-cuda-nvrtc": "13.0.88"}
    assert wanted.items() <= pinned.items()


def test_a_gpu_is_checked_by_the_python_that_is_there() -> None:
    assert made("gpu-check").splitlines() == ["python3 -m benchmarks.gpu_check"]


def test_nothing_starts_before_the_database_is_ready(compose: Any) -> None:
    services = compose["services"]
    assert services["app"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert "pg_isready" in services["postgres"]["healthcheck"]["test"][1]
    assert services["worker"]["healthcheck"] == {"disable": True}
    assert "healthcheck" not in services["app"]


def test_only_this_machine_reaches_the_service(compose: Any) -> None:
    open_to = {name: one.get("ports", []) for name, one in compose["services"].items()}
    assert open_to == {
        "app": ["127.0.0.1:8000:8000"],
        "worker": [],
        "postgres": [],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_what_watches_the_service_is_pinned_and_cannot_change_its_configuration(
    compose: Any,
) -> None:
    for name in ("prometheus", "grafana"):
        service = compose["services"][name]
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        assert service["healthcheck"]["test"][0] == "CMD"
        for volume in service["volumes"]:
            source, target, *mode = volume.split(":")
            if source.startswith("./"):
                assert mode == ["ro"]
                assert (ROOT / source).is_dir()
            else:
                assert source == name
                assert target.startswith("/")
    config = next(one for one in compose["services"]["prometheus"]["command"] if "config" in one)
    assert config == "--config.file=/etc/prometheus/prometheus.yml"
    assert (ROOT / "deploy/prometheus/prometheus.yml").is_file()


def test_nobody_looks_at_grafana_without_a_password_that_was_chosen(compose: Any) -> None:
    environment = compose["services"]["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert environment["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert re.fullmatch(
        r"\$\{GRAFANA_PASSWORD:\?[^}]+\}", environment["GF_SECURITY_ADMIN_PASSWORD"]
    )
    # Whatever else is a secret comes from the environment as well.
    text = (ROOT / "docker-compose.yml").read_text()
    for line in text.splitlines():
        if "PASSWORD" in line and not line.startswith("#"):
            assert ":?" in line, line


def made(target: str) -> str:
    """Return the commands that make would run for a target where nothing was installed before."""
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    environment["PYTHON"] = "python3.11"
    listed = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout


def test_every_target_installs_into_the_projects_own_environment_first() -> None:
    for target in ("install", "demo", "test", "test-fast", "lint", "docs"):
        commands = made(target)
        assert "'python3.11' -m venv --clear .venv" in commands
        assert ".venv/bin/python -m pip install -c constraints.txt -e '.[dev]'" in commands


def test_a_change_to_the_native_sources_is_installed() -> None:
    listed = subprocess.run(
        ["make", "--dry-run", "--print-data-base", "--question"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if "MAKE" not in name},
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    (rule,) = re.findall(r"^\.venv/\.installed: (.*)$", listed, flags=re.MULTILINE)
    needed = {"pyproject.toml", "constraints.txt", "CMakeLists.txt", "models/kernels/__init__.py"}
    needed |= {
        str(path.relative_to(ROOT))
        for pattern in ("*.cpp", "*.h", "isa/*.cpp", "isa/*.h")
        for path in (ROOT / "models/kernels/cpu").glob(pattern)
    }
    assert set(rule.split()) >= needed


def test_the_demo_is_one_command() -> None:
    assert made("demo").splitlines()[-1] == ".venv/bin/python -m benchmarks.demo"


def test_make_test_checks_everything() -> None:
    *lint, tests = made("test").splitlines()[-5:]
    assert lint == [
        ".venv/bin/ruff format --check .",
        ".venv/bin/ruff check .",
        ".venv/bin/mypy",
        ".venv/bin/lint-imports",
    ]
    assert tests.startswith(".venv/bin/pytest -n 2 ")
    assert " -m " not in tests


MAKE = """#!/bin/sh
echo "make was asked for: $*"
echo "tests/test_one.py::test_one FAILED in 5 seconds"
echo "{summary}"
echo "make: *** [Makefile:40: test] Error {code}" >&2
exit {code}
"""


@pytest.mark.parametrize(
    ("summary", "code"),
    [
        ("====== 1 failed, 214 passed, 3 skipped in 61.20s (0:01:01) ======", 2),
        ("================ 215 passed, 1 warning in 9.87s ================", 0),
        ("215 passed in 9.87s", 0),
    ],
)
def test_ci_ends_with_the_summary_and_the_exit_code(
    tmp_path: Path, summary: str, code: int
) -> None:
    ran = run_ci(tmp_path, MAKE.format(summary=summary, code=code))
    assert ran.returncode == code
    assert ran.stdout.splitlines()[-1] == summary
    assert "make was asked for: test" in ran.stdout


def test_ci_says_where_it_did_not_come_to_the_tests(tmp_path: Path) -> None:
    ran = run_ci(tmp_path, "#!/bin/sh\necho 'Found 3 errors.'\nexit 2\n")
    assert ran.returncode == 2
    assert ran.stdout.splitlines()[-1] == "pytest did not run"


# Notes how it was called, and whether services may be started meanwhile.
APT_GET = """#!/bin/sh
allowed=$(test -x "$POLICY_RC_D" && ! "$POLICY_RC_D" && echo no || echo yes)
echo "$* (services: $allowed)" >> "$NOTES"
exit {code}
"""
USED_BY_CI = (
    "bash",
    "cat",
    "chmod",
    "dirname",
    "grep",
    "mktemp",
    "rm",
    "sh",
    "tail",
    "tee",
    "timeout",
)
QUIET_MAKE = "#!/bin/sh\necho '1 passed in 0.01s'\n"


@pytest.mark.parametrize("code", [0, 100])
def test_ci_installs_what_tests_need_where_it_may_and_starts_no_service(
    tmp_path: Path, code: int
) -> None:
    ran = run_ci(tmp_path, QUIET_MAKE, user="0", apt_get=APT_GET.format(code=code))
    assert ran.returncode == 0
    assert ran.stdout.splitlines()[-1] == "1 passed in 0.01s"
    notes = (tmp_path / "notes").read_text().splitlines()
    install = "install -y --no-install-recommends {} (services: no)"
    packages = [install.format(name) for name in ("prometheus", "chromium")]
    # Without lists of packages nothing can be installed, and the tests are run all the same.
    assert notes == ["update (services: yes)", *([] if code else packages)]
    assert not (tmp_path / "policy").exists()


def test_ci_leaves_the_systems_own_policy_on_services_as_it_is(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.write_text("#!/bin/sh\nexit 101\n# of this machine\n")
    policy.chmod(0o755)
    assert run_ci(tmp_path, QUIET_MAKE, user="0", apt_get=APT_GET.format(code=0)).returncode == 0
    assert policy.read_text().endswith("# of this machine\n")


def test_ci_installs_nothing_for_who_is_not_root(tmp_path: Path) -> None:
    ran = run_ci(tmp_path, QUIET_MAKE, user="1000", apt_get=APT_GET.format(code=0))
    assert ran.returncode == 0
    assert not (tmp_path / "notes").exists()


def test_ci_installs_nothing_that_is_there(tmp_path: Path) -> None:
    assert run_ci(tmp_path, QUIET_MAKE).returncode == 0
    assert not (tmp_path / "notes").exists()


def run_ci(
    tmp_path: Path, make: str, *, user: str = "1000", apt_get: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run .ci/run with another make in its place, by a ``user``.

    With ``apt_get`` neither Prometheus nor a browser is installed, and this is what installs.
    """
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & stat.S_IXUSR
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = {"make": make, "id": f"#!/bin/sh\necho {user}\n"}
    scripts |= (
        dict.fromkeys(("promtool", "chromium"), "#!/bin/sh\n")
        if apt_get is None
        else {"apt-get": apt_get}
    )
    for name, text in scripts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name in USED_BY_CI:
        (programs / name).symlink_to(str(shutil.which(name)))
    mine = {"PATH": str(programs), "NOTES": str(tmp_path / "notes")}
    return subprocess.run(
        [script],
        env={**os.environ, **mine, "POLICY_RC_D": str(tmp_path / "policy")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
