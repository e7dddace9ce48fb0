"""Sensor readers on folders laid out as the kernel's."""

import pytest
from slm_edge.devices.machine.sensors import Sensors, energy_between, pmic_watts, throttle_words


def lay(root, files):
    for name, text in files.items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def nothing(words):
    return None


def test_what_is_not_there_is_left_out(tmp_path):
    sensors = Sensors(tmp_path, nothing)
    assert sensors.read() == {}
    assert sensors.energy_counters() == {}


def test_a_raspberry_pi(tmp_path):
    lay(
        tmp_path,
        {
            "class/thermal/thermal_zone0/type": "cpu-thermal",
            "class/thermal/thermal_zone0/temp": "54328",
            "devices/platform/soc/soc:firmware/get_throttled": "50005",
            "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000",
        },
    )
    found = Sensors(tmp_path, nothing).read()
    assert found["temperature_c"] == {"thermal_zone0 cpu-thermal": pytest.approx(54.328)}
    assert found["throttled"] == 0x50005
    assert found["frequency_mhz"] == {"cpu0": 2400}
    assert throttle_words(0x50005) == [
        "under-voltage",
        "throttled",
        "under-voltage (since boot)",
        "throttled (since boot)",
    ]


# Lines as a Pi 5's `vcgencmd pmic_read_adc` prints them.
PMIC = """     3V7_WL_SW_A current(0)=0.00195176A
   3V3_SYS_A current(1)=0.08002280A
     VDD_CORE_A current(7)=2.50000000A
 3V7_WL_SW_V volt(8)=3.70000000V
   3V3_SYS_V volt(9)=3.30000000V
    VDD_CORE_V volt(15)=0.90000000V
      EXT5V_V volt(24)=5.12000000V
"""


def test_a_pi_5s_pmic():
    assert pmic_watts(PMIC) == pytest.approx(0.00195176 * 3.7 + 0.0800228 * 3.3 + 2.5 * 0.9)
    assert pmic_watts("") is None


def test_vcgencmd_where_the_kernel_has_no_file(tmp_path):
    answers = {"get_throttled": "throttled=0x0\n", "pmic_read_adc": PMIC}
    sensors = Sensors(tmp_path, lambda words: answers.get(words[1]))
    assert sensors.throttled() == 0
    assert sensors.read()["power_w"]["pmic rails (no 5 V peripherals)"] == pytest.approx(2.5213, abs=1e-3)


def test_a_jetsons_ina3221(tmp_path):
    chip = "class/hwmon/hwmon3/"
    lay(
        tmp_path,
        {
            f"{chip}name": "ina3221",
            f"{chip}in1_label": "VDD_IN",
            f"{chip}in1_input": "5040",
            f"{chip}curr1_input": "1200",
            f"{chip}in2_label": "VDD_CPU_GPU_CV",
            f"{chip}in2_input": "5032",
        },
    )
    assert Sensors(tmp_path, nothing).powers() == {"ina3221 VDD_IN": pytest.approx(6.048)}


def test_a_laptop(tmp_path):
    lay(
        tmp_path,
        {
            "class/hwmon/hwmon0/name": "coretemp",
            "class/hwmon/hwmon0/temp1_input": "61000",
            "class/hwmon/hwmon0/temp1_label": "Package id 0",
            "class/power_supply/BAT0/type": "Battery",
            "class/power_supply/BAT0/status": "Discharging",
            "class/power_supply/BAT0/voltage_now": "12000000",
            "class/power_supply/BAT0/current_now": "1500000",
            "class/power_supply/AC/type": "Mains",
            "class/powercap/intel-rapl:0/name": "package-0",
            "class/powercap/intel-rapl:0/energy_uj": "262143000000",
            "class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
            "class/powercap/intel-rapl:0:0/name": "core",
            "class/powercap/intel-rapl:0:0/energy_uj": "5",
            "class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143328850",
        },
    )
    sensors = Sensors(tmp_path, nothing)
    found = sensors.read()
    assert found["temperature_c"] == {"coretemp Package id 0": 61.0}
    assert found["power_w"] == {"battery BAT0": pytest.approx(18.0)}
    assert "throttled" not in found
    before = sensors.energy_counters()
    assert set(before) == {"RAPL package-0"}
    # The counter went round its end: 0.328850 J to it and 10 J on.
    lay(tmp_path, {"class/powercap/intel-rapl:0/energy_uj": "10000000"})
    assert energy_between(before, sensors.energy_counters()) == {"RAPL package-0": pytest.approx(10.32885)}


def test_a_charging_battery_and_broken_files_say_nothing(tmp_path):
    lay(
        tmp_path,
        {
            "class/power_supply/BAT0/type": "Battery",
            "class/power_supply/BAT0/status": "Charging",
            "class/power_supply/BAT0/power_now": "9000000",
            "class/thermal/thermal_zone0/temp": "no number",
            "class/thermal/thermal_zone1/temp": "-274000",
        },
    )
    assert Sensors(tmp_path, nothing).read() == {}
