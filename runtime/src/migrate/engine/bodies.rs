//! What befalls a body and its deputy: reports of hosts, ends of threads and processes, signals to hand on.

use super::*;

impl HomeEngine {
    /// Something a host said that concerns one process.
    pub(super) fn heard(&mut self, cx: &mut Cx<'_>, node: NodeName, message: ToHome) {
        let report = |pid: Pid, report| (pid.0, HomeEvent::Report(node.clone(), report));
        let (pid, event) = match message {
            ToHome::Complete { pid, epoch, bytes } => {
                if let Some(journey) = self.journey(pid.0) {
                    journey.bytes = bytes;
                }
                report(pid, Report::Complete(epoch))
            }
            ToHome::Refused { pid, epoch, reason } => {
                let why = format!("{node}: {reason}");
                self.fail(pid.0, &why);
                if let Some(process) = self.processes.get_mut(&pid.0) {
                    process.loss = Some(why);
                }
                report(pid, Report::Refused(epoch))
            }
            ToHome::Running { pid, epoch } => {
                // What `ps` shows of it should not wait for the next round.
                if let Some(host) = self.connected.get(&node) {
                    host.order(&ToHost::AskUsage);
                }
                report(pid, Report::Running(epoch))
            }
            ToHome::WantHome { pid, epoch, .. } => report(pid, Report::WantHome(epoch)),
            ToHome::Frozen { pid, epoch, for_us } => {
                if let Some(journey) = self.journey(pid.0) {
                    // It has stood still since before it could say so; longer than the move lasts it cannot be.
                    let now = Instant::now();
                    let since = now.checked_sub(Duration::from_micros(for_us)).unwrap_or(journey.begun);
                    let since = since.max(journey.begun);
                    journey.frozen = Some(journey.frozen.map_or(since, |known| known.min(since)));
                }
                report(pid, Report::Frozen(epoch))
            }
            ToHome::CannotDepart { pid, epoch, reason } => {
                self.fail(pid.0, &format!("{node}: {reason}"));
                report(pid, Report::CannotDepart(epoch))
            }
            ToHome::Exited { pid, epoch, how } => {
                if let Some(process) = self.processes.get_mut(&pid.0)
                    && process.state.accepted() == Some((&node, epoch))
                {
                    process.dying = Some(how);
                }
                report(pid, Report::Exited(epoch))
            }
            ToHome::ThreadExit {
                pid,
                tid,
                epoch,
                status,
            } => {
                return self.thread_exit(&node, pid.0, tid.0, epoch, status);
            }
            ToHome::Forked { pid, epoch, child } => return self.born(cx, &node, (pid.0, epoch), child.0),
            ToHome::NotForked { pid, epoch, child } => return self.not_born(cx, &node, (pid.0, epoch), child.0),
            ToHome::Cancel { pid, tid, epoch, seq } => {
                if let Some(process) = self.processes.get_mut(&pid.0)
                    && process.state.accepted() == Some((&node, epoch))
                    && process
                        .deputy
                        .as_ref()
                        .and_then(|deputy| deputy.open(tid.0))
                        .is_some_and(|open| open.seq == seq)
                {
                    process.cancels.insert(tid.0, seq);
                    let _ = signals::interrupt(process, tid.0);
                }
                return;
            }
            ToHome::Took { pid, epoch, number } => {
                if let Some(process) = self.processes.get_mut(&pid.0)
                    && process.state.keeps_signals(&node, epoch)
                {
                    process.signals.taken(number);
                }
                return;
            }
            ToHome::Action {
                pid,
                epoch,
                signal,
                action,
                ..
            } => {
                if let Some(process) = self.processes.get_mut(&pid.0)
                    && process.state.accepted() == Some((&node, epoch))
                    && let Some(index) = signal.checked_sub(1)
                    && let Some(known) = process
                        .image
                        .as_mut()
                        .and_then(|image| image.actions.get_mut(usize::from(index)))
                {
                    *known = action;
                }
                return;
            }
            ToHome::StopSignal { pid, epoch, signal } => {
                // The deputy takes it at its delivery stop and really stops; nothing else may be asked for in this way.
                let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
                if let Some(process) = self.processes.get(&pid.0)
                    && process.state.accepted() == Some((&node, epoch))
                    && stops.contains(&i32::from(signal))
                {
                    let _ = mosix_sys::process::kill(pid.0, i32::from(signal));
                }
                return;
            }
            ToHome::MapFile {
                pid,
                tid,
                epoch,
                fd,
                exec,
                shared,
            } => {
                if let (Some(process), Some(host)) = (self.processes.get_mut(&pid.0), self.connected.get(&node))
                    && process.state.accepted() == Some((&node, epoch))
                {
                    let answer = process.mapped.answer(pid.0, fd, (exec, shared));
                    host.order(&ToHost::MapFile { pid, tid, answer });
                }
                return;
            }
            ToHome::WantFile { pid, file } => {
                if let Some(host) = self.connected.get(&node) {
                    let source = self.processes.get(&pid.0).and_then(|process| process.mapped.get(&file));
                    mapped::send(host, file, source);
                }
                return;
            }
            ToHome::Usage {
                pid,
                spent,
                resident,
                threads,
                running,
            } => {
                // From a host that has the body, or had it until the move that is under way.
                let Some(process) = self.processes.get(&pid.0) else {
                    return;
                };
                if process.state.accepted().is_some_and(|(at, _)| *at != node) {
                    return;
                }
                self.accounts.report(pid.0, spent);
                let cpu_ns = self.accounts.own(pid.0).cpu.total();
                return cx.shared.place(pid.0, |placement| {
                    placement.usage = Usage {
                        cpu_ns,
                        resident,
                        threads,
                        running,
                    };
                });
            }
            // Handled by the link reader, or belongs on a page stream.
            _ => return,
        };
        self.step(cx, pid, event);
        if let Some((attempt, bytes)) = self.processes.get_mut(&pid).and_then(|process| process.landed.take()) {
            self.landed(cx, pid, attempt, bytes);
        }
    }

    pub(super) fn thread_exit(&mut self, node: &NodeName, pid: i32, tid: i32, epoch: Epoch, status: i32) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if process.state.accepted() != Some((node, epoch)) {
            return;
        }
        let Some(deputy) = &process.deputy else { return };
        if let Some(slot) = deputy.slot(tid) {
            let mut op = mosix_loader::script::Op::may(libc::SYS_exit, [status as u64, 0, 0, 0, 0, 0]);
            op.flags |= mosix_loader::script::abi::OP_QUIET;
            if let Err(error) = deputy.window().post(slot, &[op]) {
                tracing::warn!(pid, tid, %error, "the thread cannot end at home");
            }
        }
    }

    /// Ends the deputy as its body ended.
    pub(super) fn end(&mut self, cx: &mut Cx<'_>, pid: i32, cause: Cause) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        match (cause, process.dying) {
            (Cause::Killed, _) => {}
            (_, how) if process.inherited.take().is_some() => crate::migrate::exec::finish(pid, how),
            (Cause::Exited, Some(Exit::Code(code))) => {
                let args = [code as u64, 0, 0, 0, 0, 0];
                if crate::migrate::process::divert(process, libc::SYS_exit_group, args).is_err() {
                    let _ = mosix_sys::process::kill(pid, libc::SIGKILL);
                }
            }
            (Cause::Exited, Some(Exit::Signal { signal, .. })) => {
                if crate::migrate::process::die(process, i32::from(signal)).is_err() {
                    let _ = mosix_sys::process::kill(pid, libc::SIGKILL);
                }
            }
            (Cause::Exited, None) => {}
            (Cause::Lost, _) => {
                let why = process.loss.take();
                cx.handle.notice(format!(
                    "process {pid} ({}) is lost with its body: {}",
                    process.program,
                    why.as_deref().unwrap_or("the node that had it is gone")
                ));
                process.dying = Some(Exit::Signal {
                    signal: libc::SIGKILL as u8,
                    core: false,
                });
                let _ = mosix_sys::process::kill(pid, libc::SIGKILL);
            }
        }
        if let Some(deputy) = &process.deputy {
            deputy.close();
        }
    }

    /// The source of a move died: its destination is told, once, that no stream will come any more, and says then what it has.
    pub(super) fn ask_again(&mut self, pid: i32) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let Home::Moving {
            from,
            to,
            attempt,
            source: crate::contract::commit::Source::Gone,
            complete: false,
            ..
        } = &process.state
        else {
            return;
        };
        if process.asked.replace(*attempt) == Some(*attempt) {
            return;
        }
        if let Some(host) = self.connected.get(to) {
            host.order(&ToHost::Expect {
                pid: Pid(pid),
                epoch: *attempt,
                from: from.clone(),
                fingerprint: Default::default(),
            });
        }
    }

    /// Reports a move that has come to its end, good or bad.
    pub(super) fn settle(&mut self, cx: &mut Cx<'_>, pid: i32) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let place = match process.state.accepted() {
            Some((node, _)) => Place::Node(node.clone()),
            None => Place::Home,
        };
        if !process.state.settled() {
            cx.shared.place(pid, |placement| placement.moving = true);
            return;
        }
        process.deadline = None;
        // What really stops the deputy waits for no move.
        for signal in std::mem::take(&mut process.stops) {
            let _ = mosix_sys::process::kill(pid, signal);
        }
        let Some(journey) = process.journey.take() else {
            // One that was born away has not moved.
            return cx.shared.place(pid, |placement| placement.moving = false);
        };
        let moved = place == journey.to;
        cx.shared.place(pid, |placement| {
            placement.moving = false;
            placement.moves += u32::from(moved && journey.from != journey.to);
            if place == Place::Home {
                placement.usage = Usage {
                    cpu_ns: self.accounts.own(pid).cpu.total(),
                    ..Usage::default()
                };
            }
            placement.place = place.clone();
        });
        let now = Instant::now();
        let us = |since: Instant| now.duration_since(since).as_micros() as u64;
        let still = |since: Instant| {
            journey
                .thawed
                .unwrap_or(now)
                .saturating_duration_since(since)
                .as_micros() as u64
        };
        process.carried = journey.bytes;
        if let Some(reply) = &journey.reply {
            if moved {
                reply.moved(Moved {
                    pid: Pid(pid),
                    program: process.program.clone(),
                    from: journey.from,
                    to: journey.to,
                    freeze_us: journey.frozen.map_or(0, still),
                    total_us: us(journey.begun),
                    bytes: journey.bytes,
                });
            } else if freeze::gone(pid) {
                reply.refuse(
                    RefusalKind::UnknownProcess,
                    Some(pid),
                    format!("process {pid} ended before it had moved"),
                );
            } else if let Some(why) = &journey.reason {
                reply.refuse_for(pid, why);
            } else {
                let why = journey
                    .why
                    .unwrap_or_else(|| "it ended, or the move was undone".to_owned());
                reply.refuse(
                    RefusalKind::Failed,
                    Some(pid),
                    format!("process {pid} stays where it was: {why}"),
                );
            }
        } else if journey.to != Place::Home {
            tracing::info!(pid, moved, why = ?journey.why, "a new program");
        } else if let Some(why) = journey.why.filter(|_| !moved) {
            cx.handle.notice(format!("process {pid} could not come home: {why}"));
        }
        if place != Place::Home {
            self.usage_due.get_or_insert(now + USAGE);
            self.flush(pid);
        }
    }

    /// Sends signals that waited for the body to be somewhere.
    pub(super) fn flush(&mut self, pid: i32) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let Some(host) = process.state.signals_to().and_then(|node| self.connected.get(node)) else {
            return;
        };
        for (number, (tid, info)) in process.signals.kept() {
            send(host, pid, number, *tid, info.clone());
        }
    }

    pub(super) fn forward(&mut self, pid: i32, tid: Option<i32>, info: SigInfo) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let number = process.signals.take((tid, info.clone()));
        if let Some(host) = process.state.signals_to().and_then(|node| self.connected.get(node)) {
            send(host, pid, number, tid, info);
        }
    }

    /// A thread of a held process ended; with the leader, the process.
    pub(super) fn thread_gone(&mut self, cx: &mut Cx<'_>, pid: i32, tid: i32) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.held.remove(&tid);
        process.interrupted.remove(&tid);
        process.lingering.remove(&tid);
        if let Some(deputy) = &process.deputy {
            deputy.leave(tid);
        }
        if tid != pid {
            return;
        }
        self.step(cx, pid, HomeEvent::DeputyDead);
        self.forget(pid);
    }

    pub(super) fn forget(&mut self, pid: i32) {
        let Some(mut process) = self.processes.remove(&pid) else {
            return;
        };
        for child in process.unborn.drain().chain(process.newborn.drain(..)) {
            // Nobody makes a body for it any more.
            let _ = mosix_sys::process::kill(child, libc::SIGKILL);
        }
        if let Some(reply) = process.journey.take().and_then(|journey| journey.reply) {
            let text = format!("process {pid} ended before it had moved");
            reply.refuse(RefusalKind::UnknownProcess, Some(pid), text);
        }
        self.accounts.settle();
        if let Some(deputy) = &process.deputy {
            deputy.close();
            deputy.end();
        }
        if let Some(hosts) = &self.hosts {
            hosts
                .deputies
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&pid);
        }
    }

    /// A lingering thread of a process at home was stopped.
    pub(super) fn lingering_event(&mut self, pid: i32, tid: i32, event: Event) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if !process.lingering.contains_key(&tid) {
            return;
        }
        let deputy = process.deputy.clone();
        match event {
            Event::Signal(_) => signals::renew(process, tid),
            Event::Stop(_) => _ = process.interrupted.remove(&tid),
            _ => {}
        }
        let done = match event {
            Event::Signal(signal) if signals::ignored(pid, signal) => signals::go_on(tid, deputy.as_deref()),
            Event::Signal(_) => home::interrupted(process, tid),
            Event::Stop(libc::SIGTRAP) => home::go_on(process, tid),
            Event::Stop(_) => ptrace::listen(tid),
            _ => ptrace::cont(tid, 0),
        };
        if let Err(error) = done {
            tracing::debug!(tid, %error, "lingering thread is gone");
        }
    }
}

fn send(host: &Host, pid: i32, number: u64, tid: Option<i32>, info: SigInfo) {
    host.order(&ToHost::Signal {
        pid: Pid(pid),
        number,
        tid: tid.map(Tid),
        info,
    });
}
