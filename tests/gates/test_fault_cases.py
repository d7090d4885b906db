"""The cases of load and of failing machines that the server has to survive, and the tests that hold it to each."""

import ast

import pytest
from paths import ROOT

CASES = {
    "a full queue is refused at once, with when to try again": (
        "server/api/test_load.py::test_a_full_queue_is_refused_while_the_device_is_busy_with_when_to_try_again",
        "server/engine/test_engine.py::test_a_queue_is_full_by_images_and_a_job_for_more_waits_alone",
    ),
    "a client leaves the queue": (
        "server/api/test_jobs.py::test_a_client_that_disconnects_from_the_queue_is_never_served",
    ),
    "a client leaves while its image is drawn": (
        "server/api/test_jobs.py::test_a_client_that_disconnects_frees_the_device_within_one_evaluation",
        "server/api/test_stream.py::test_a_client_that_hangs_up_frees_the_device_within_one_evaluation",
        "server/api/test_deadline.py::test_the_requests_of_clients_that_hang_up_are_carried_out",
    ),
    "a client reads slowly": (
        "server/api/test_load.py::test_a_client_that_does_not_read_its_images_keeps_no_other_from_the_device",
        "server/api/test_stream.py::test_twenty_streams_that_are_not_read_keep_memory_flat",
        "server/api/test_protocol.py::test_a_client_that_takes_no_response_is_dropped_with_its_memory",
    ),
    "a hundred requests of one client come at once": (
        "server/api/test_load.py::test_one_request_comes_soon_amid_a_hundred_of_another_client",
        "server/engine/test_engine.py::test_one_client_has_at_most_half_of_the_queue",
    ),
    "an unknown or finished job is cancelled": (
        "server/api/test_job_list.py::test_a_job_that_has_ended_is_a_conflict_and_any_other_name_is_not_found",
    ),
    "probes and metrics are asked for while the device is busy": (
        "server/api/test_load.py::test_the_server_answers_while_the_device_is_busy",
    ),
    "memory runs out in a step, in the VAE, or while weights change": (
        "server/engine/test_faults.py::test_an_image_is_the_same_after_memory_ran_out_once",
        "server/engine/test_faults.py::test_an_image_for_which_memory_never_suffices_fails_and_the_next_does_not",
        "server/engine/test_faults.py::test_a_request_for_which_memory_does_not_suffice_gets_503_with_advice",
        "server/engine/test_resident.py::test_a_model_for_which_memory_ran_out_is_loaded_once_the_others_are_gone",
    ),
    "the device fails for good": (
        "server/engine/test_faults.py::test_a_device_that_is_lost_in_any_part_refuses_all_jobs",
        "end_to_end/test_faults.py::test_a_device_that_fails_gives_503_and_ends_the_process_with_its_own_status",
    ),
    "a process is killed": (
        "end_to_end/test_replicas.py::test_a_killed_replica_loses_its_own_requests_and_is_replaced",
        "server/archive/test_files.py::test_a_killed_process_leaves_no_broken_file",
    ),
    "a step hangs": (
        "server/engine/test_engine.py::test_a_step_that_hangs_refuses_all_jobs_at_once",
        "server/engine/test_watchdog.py::test_steps_may_take_ten_times_as_long_as_the_longest_so_far",
        "end_to_end/test_faults.py::test_a_server_whose_step_hangs_may_stay_and_say_so",
    ),
    "latents or pixels are not finite": (
        "server/engine/test_faults.py::test_latents_that_are_not_finite_fail_one_job_with_advice",
        "server/engine/test_faults.py::test_pixels_that_are_not_finite_fail_only_their_job",
        "pipelines/test_pipeline.py::test_a_vae_that_overflows_is_retried_in_float32_and_restored",
    ),
    "the disk is full or read-only": (
        "server/api/test_archive.py::test_a_full_disk_does_not_fail_a_request",
        "server/archive/test_files.py::test_a_file_that_the_disk_has_no_room_for_is_not_there_in_part",
        "server/archive/test_files.py::test_a_read_only_folder_is_an_error_of_the_system",
    ),
    "a checkpoint is damaged or another kind of file": (
        "pipelines/weights/test_header.py::test_a_truncated_download_is_refused_before_it_is_loaded",
        "pipelines/weights/test_header.py::test_a_file_of_another_format_is_refused_by_name",
        "pipelines/weights/test_header.py::test_a_header_that_would_fill_the_memory_is_not_parsed",
        "server/cli/test_main.py::test_a_pickle_is_refused_by_name",
        "server/engine/test_resident.py::test_a_failed_switch_leaves_the_other_model_serving",
    ),
    "a file is replaced while the server runs": (
        "pipelines/adapters/test_residency.py::test_weights_whose_file_was_replaced_are_not_restored_from_it",
        "server/engine/test_resident.py::test_an_auxiliary_file_that_was_replaced_is_noticed_when_its_model_is_loaded_again",
    ),
    "the port is in use, or not allowed": (
        "server/cli/test_listeners.py::test_a_port_in_use_is_refused",
        "server/cli/test_listeners.py::test_a_privileged_port_is_refused_with_the_remedy",
    ),
    "signals come while weights load, and while requests run": (
        "end_to_end/test_faults.py::test_a_signal_while_weights_load_ends_the_process_at_once",
        "server/api/test_lifecycle.py::test_a_request_is_finished_after_a_signal",
        "server/api/test_lifecycle.py::test_a_second_signal_ends_the_process_at_once",
    ),
    "the computer slept": ("server/engine/test_watchdog.py::test_a_computer_that_slept_has_not_hung",),
    "the driver or torch's build does not suit the GPU": (
        "pipelines/test_torch_build.py::test_a_gpu_without_kernels_is_explained",
        "pipelines/test_torch_build.py::test_a_build_for_cuda_that_sees_no_gpu_says_so",
    ),
}


@pytest.mark.parametrize("test", [test for tests in CASES.values() for test in tests])
def test_the_test_of_a_case_exists(test):
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
