//! Small behaviours, several in one program: each plainly, at home, and on hosts, with the moves between its set-up and its check.

use mosix_tests::coverage::{self, Behaviour};
use mosix_tests::{Guest, How, Lab, binary, require};
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

/// The moves before the check: it happens on a host after one move and after two, and at home again.
const ROUNDS: [&[&str]; 3] = [&["n2"], &["n2", "n3"], &["n2", "home"]];

const SIGNALFD: &str = "signals of a moved process wait in its body, where a signalfd does not see them";
const FLAGS: &str = "what a process decides about SIGCHLD while it is away is not known to its kernel half";
const LEADER: &str = "a moved process whose first thread has ended is taken for one that was killed";
const VDSO: &str = "a call that the vDSO makes and that comes home leaves its thread standing in the vDSO";
const CONTINUED: &str = "the SIGCHLD of a stopped child that goes on says again that it was stopped";
const OVERRUNS: &str = "each expiry of a timer is a signal of its own to a moved process, also while one waits";
/// Behaviours that fail, for a reason that is known.
const GAPS: &[(&str, &str)] = &[
    ("children:children_that_nobody_waits_for", FLAGS),
    ("children:no_word_of_stops", FLAGS),
    ("children:no_zombies_by_flag", FLAGS),
    ("children:sigchld_tells_what_happened", CONTINUED),
    ("polling:signalfd_made_at_home", SIGNALFD),
    ("threads:leader_exits_first", LEADER),
    ("timers:clocks_of_others", VDSO),
    ("timers:posix_timer_overruns", OVERRUNS),
];

/// Runs a behaviour in every way. The runs do not meet, and none of them computes: they go side by side.
fn show(program: &str, name: &str) {
    require!(require::program("cc"));
    let whole = format!("{program}:{name}");
    let test = || {
        std::thread::scope(|scope| {
            let near = scope.spawn(|| {
                Guest::start(program, &[name], How::Plain).pass();
                Guest::start(program, &[name], How::Home(Lab::home())).pass();
            });
            let mut served = BTreeSet::new();
            for moves in ROUNDS {
                served.extend(go(program, name, moves));
            }
            if let Err(panic) = near.join() {
                std::panic::resume_unwind(panic);
            }
            let wanted = coverage::behaviours()
                .into_iter()
                .find(|one| one.program == program && one.name == name);
            hold_to(&wanted.expect("it is declared"), &served);
        });
    };
    match GAPS.iter().find(|(gap, _)| *gap == whole) {
        Some((_, why)) => require::known_gap(why, test),
        None => test(),
    }
}

/// Runs it with these moves; the calls that agents have served, and how.
fn go(program: &str, name: &str, moves: &[&str]) -> BTreeSet<(String, String)> {
    let lab = Lab::shared();
    let how = How::Moving {
        lab,
        period: Duration::ZERO,
    };
    let mut guest = Guest::start(program, &[name], how);
    let pid = guest.pid();
    for target in moves {
        guest.migrate(target);
    }
    guest.pass();
    lab.served(pid)
}

/// Fails when a call that the behaviour says to show was not served as the table has it.
fn hold_to(one: &Behaviour, served: &BTreeSet<(String, String)>) {
    let table = coverage::table();
    for call in &one.calls {
        let row = table.iter().find(|row| row.name == *call);
        let row = row.unwrap_or_else(|| panic!("{}:{}: there is no call {call}", one.program, one.name));
        // What a host's kernel executes alone is seen by nobody.
        if let Some(way) = row.way() {
            let found = served
                .iter()
                .filter(|(name, _)| name == call)
                .map(|(_, how)| how.as_str());
            let found: Vec<&str> = found.collect();
            assert!(
                found.contains(&way),
                "{}:{} does not show {call} ({way}): {found:?} of {served:?}",
                one.program,
                one.name
            );
        }
    }
}

macro_rules! behaviours {
    ($($program:ident: $($name:ident)*;)*) => {
        $(mod $program { $(#[test] fn $name() { super::show(stringify!($program), stringify!($name)) })* })*
        const ALL: &[(&str, &str)] = &[$($((stringify!($program), stringify!($name)),)*)*];
    };
}

behaviours! {
    children: children_that_nobody_waits_for executes_a_descriptor executes_a_program forked_by_the_old_call
        in_its_parents_memory no_word_of_stops no_zombies_by_flag
        sigchld_tells_what_happened status_of_a_crash status_of_a_death status_of_an_exit
        stopped_and_continued wait_ends_with_a_signal waiting_by_group;
    credentials: capabilities groups_of_processes new_session real_and_effective_users users_are_told
        users_for_files users_for_good users_of_all_threads;
    descriptors: descriptor_limit devices dup_takes_the_lowest fcntl_flags ioctl_of_every_descriptor
        memfd_and_seals ranges_close signal_when_a_pipe_has_data;
    file_content: advice_about_reading append_writes_at_the_end holes_are_found offset_is_shared_by_dups
        pread_and_pwrite_leave_the_offset signal_at_the_size_limit sizes_change vectors vectors_with_flags
        writing_it_out;
    file_copy: copy_of_a_range large_reads_and_writes sendfile_to_a_socket splice_and_tee vmsplice_a_pipe;
    ipc: all_semaphores_at_once posix_queue_by_priority posix_queue_is_polled posix_queue_notifies
        queue_by_types queue_is_waited_for segments_are_made_and_asked_about semaphores
        semaphores_are_undone;
    locks: flock_is_kept lease_is_broken open_file_locks posix_locks_are_kept waiting_for_a_lock;
    memory: advice fixed_addresses half_a_buffer locked_memory map_without_right mappings_grow_and_move
        memory_of_oneself private_file private_memory protections shared_file_is_written_back
        stack_that_grows_down the_heap_s_end;
    metadata: extended_attributes modes newest_attributes owners status_by_every_call times_of_files;
    paths: another_root current_folder deleted_file_stays file_systems folder_is_read names_by_folder
        names_by_the_old_calls opened_with_limits removed_current_folder special_files;
    pipes: bytes_wait_in_a_pipe fifo_opens_when_both_are_there full_pipe packets_in_a_pipe
        read_ends_when_the_child_does sigpipe writer_of_a_fifo_waits_away;
    polling: closed_on_exec_from_the_first_moment epoll_level_edge_oneshot epoll_pwait_opens_the_mask
        eventfd_counts inotify_tells poll_says_what_is_ready ppoll_opens_the_mask pselect_opens_the_mask
        select_says_what_is_ready signalfd_made_at_home signalfd_made_away timerfd_expires;
    process_state: kernel_log_has_a_size kind_of_execution limits names_of_the_machine own_pidfd priorities
        processors properties sandbox_of_paths schedulers usage_is_told;
    signal_handlers: alternate_stack_of_each_thread beyond_the_end_of_a_file blocked_in_its_own_handler
        division_by_zero fault_addresses handler_changes_registers_and_mask handler_in_a_handler
        illegal_instruction long_jump_out_of_a_handler nodefer_nests reset_after_one;
    signal_queue: ignoring_drops_what_is_pending ordinary_signals_merge pending_before_the_move
        realtime_order sigwaitinfo_takes_one;
    signal_send: kill_child kill_group kill_nothing kill_self pidfd_send_signal_self
        pthread_kill_is_for_one_thread raise_is_for_the_caller sigqueue_forged sigqueue_self sigqueue_thread
        tgkill_thread tkill_thread;
    signal_waits: ignored_signals_end_nothing only_the_call_s_mask_lets_it_in pause_ends polls_never_go_on
        process_signal_finds_the_open_thread read_ends_or_goes_on restarted_read_gets_data
        semop_never_goes_on sigsuspend_ends sigwait_from_home socket_calls_end
        stopped_and_continued_in_a_read;
    sockets_inet: accept_waits_for_a_client connect_without_waiting connection_refused_and_reset
        interfaces_are_home_s tcp_made_at_home tcp_made_away udp urgent_byte version_six;
    sockets_unix: credentials_in_messages datagrams_keep_their_borders descriptors_in_messages
        many_messages_at_once options_of_a_socket packets pair_of_streams stream_server_by_name;
    terminals: controlling_terminal hangup interrupt_character modes_of_a_terminal pty_opened_away
        window_change_is_signalled window_size;
    threads: barrier_between_threads cancelled_in_a_condition cancelled_in_a_read exit_handlers_run_in_order
        leader_exits_first locals_of_threads mutex_with_inheritance names_of_threads recursive_mutex
        robust_mutex_of_a_dead_owner semaphore_between_threads threads_made_away writers_wait_for_readers;
    timers: alarm_made_at_home clocks_go_on clocks_of_others interval_timer_goes_on posix_timer_for_a_thread
        posix_timer_overruns posix_timer_signals rest_of_a_sleep sleep_until sleeps;
}

#[test]
fn every_declared_behaviour_is_run() {
    let declared = coverage::behaviours();
    let declared: BTreeSet<(&str, &str)> = declared
        .iter()
        .map(|one| (one.program.as_str(), one.name.as_str()))
        .collect();
    let run: BTreeSet<(&str, &str)> = ALL.iter().copied().collect();
    let different: Vec<_> = declared.symmetric_difference(&run).collect();
    assert!(
        different.is_empty(),
        "declared but not run, or run but not declared: {different:?}"
    );
}

/// `cargo xtask gen-docs` writes it.
#[test]
fn page_of_calls_is_current() {
    let output = Command::new(binary::mosix())
        .args(["ctl", "syscalls", "--markdown"])
        .output();
    let wanted = coverage::page(&String::from_utf8(output.unwrap().stdout).unwrap());
    let found = std::fs::read_to_string(binary::workspace().join("docs/syscalls.md")).unwrap();
    assert!(
        found == wanted,
        "docs/syscalls.md is not what table and tests say: cargo xtask gen-docs"
    );
}

/// Every call that mosix serves on a host itself is made there by a guest.
#[test]
fn every_served_call_has_a_behaviour() {
    let shown: BTreeSet<String> = coverage::behaviours().into_iter().flat_map(|one| one.calls).collect();
    let missing: Vec<&str> = coverage::table()
        .iter()
        .filter(|row| matches!(row.way(), Some("home" | "here")) && !shown.contains(&row.name))
        .map(|row| row.name.as_str())
        .collect();
    assert!(missing.is_empty(), "no behaviour in tests/guests shows {missing:?}");
}
