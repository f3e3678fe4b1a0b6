//! The cluster schema gate. What the originals' tests were called, and where the same is asserted
//! here; "corrected" where the original did something else.
//!
//! | original | here |
//! |---|---|
//! | **thermionic, integration** | on a replicated cluster and on an SQLite file |
//! | TestEnsureSchema_NoClustered | `real::not_clustered` |
//! | TestEnsureSchema_ClusterNotUpgradable, five cases | `real::cluster_not_upgradable` |
//! | TestEnsureSchema_UpdateNodeVersion, two cases | `real::update_node_version`; corrected: the second case is really set up, and the level stays |
//! | **thermionic, mocks** | |
//! | New, Open, OpenWithEmptyName, OpenWithErrorFromOpening | `check::open`; corrected: may be opened again, a failure leaves the old handle. No names of drivers here |
//! | EnsureSchema | `check::the_order_of_calls` |
//! | EnsureSchemaWithRetrySemanticsAroundEnsure | `check::only_transient_errors_are_retried`; corrected: it was the other way round |
//! | .. WithTxBeginFailure, TxExecFailure, TxRollbackFailure, CommitFailure | `check::the_initial_row_fails`; corrected: the next start mends it |
//! | Hook | `check::backup`, `check::backup_before_a_patch_and_before_a_fresh_schema` |
//! | HookWithNoUpdates | `check::nothing_is_copied_where_it_is_fresh_or_clustered` |
//! | Hook: failures of query, rows, scan, count; backup failure; more than one unclustered | `check::the_hook_fails` |
//! | Check | `check::the_order_of_calls`, `real::cluster_not_upgradable` |
//! | CheckWithCurrentEqualsZero | `check::check_with_current_equal_zero` |
//! | Check: failures of count, scan, update, affected rows, select | `check::the_check_fails` |
//! | CheckWithFallenBehindNode, InconsistentVersions, FallenComrades | `real::cluster_not_upgradable`, `real::the_order_of_rows_decides_nothing`; the text of the last: `engine::checks` |
//! | Updates: provider, two updates, update 1 | `check::the_provider`, `engine::the_projects_own_schema_is_flattened`; "executes one statement": falls away, it is a file of four |
//! | iteration errors | fall away: a result is collected, or is an error |
//! | **schema package** | |
//! | NewFromMap, NewFromMap_MissingVersions | `engine::new_from_map`: an error, no panic |
//! | VersionMoreRecentThanExpected | `engine::version_more_recent_than_expected` |
//! | FreshStatementError | `engine::fresh_statement_error` |
//! | MissingVersion; ZeroUpdates | `engine::a_hole_is_an_error`; `engine::zero_updates` |
//! | ApplyAllUpdates, OnlyApplyMissing | `engine::apply_all_updates_and_only_those_missing` |
//! | ApplyAfterInitialDumpCreation | `engine::apply_after_initial_dump_creation` |
//! | FailingUpdate; FailingHook | `engine::failing_update`; `engine::failing_hook` |
//! | CheckGracefulAbort, and the unit tests of checks | `engine::checks` |
//! | Dump | `engine::a_dump_keeps_indices_views_and_triggers`; corrected: they were lost |
//! | Dump_MissingUpdates | `engine::what_cannot_be_dumped` |
//! | File, File_Hook, File_NotExists | `engine::patch_file` |
//! | File_Garbage, execFromFile's failures | `engine::patch_file_failures` |
//! | Trim; ExerciseUpdate | `engine::trim`; `engine::exercise_update` |
//! | units: table exists, created, their failures; select, insert failing | `engine::the_engines_own_statements_fail` |
//! | units: hooks | `engine::hooks_are_called_before_each_change`; corrected: before a flattened schema too |
//! | **query helpers** | |
//! | IsRetriableError, six | `errors::which_errors_are_transient`; by kind, not by text |
//! | Transaction: begin, func, rollback, commit | `check::transactions`; "tx done" falls away: a transaction ends once, by type |
//! | Count | `check::the_check_fails` (its errors), everywhere else |
//! | SelectStrings, SelectIntegers, UpsertObject, DeleteObject | fall away: rows become Rust types in the driver, and statements are written out |
//! | config: select, update, delete on empty value | `nodes::heartbeats_and_thresholds` |
//! | **db.Cluster** | |
//! | Open, OpenWithMultipleNodes, NoMatchingAddress, OpenWithVersionMissmatch, EnsureSchemaFailure | `nodes::start` |
//! | OpenFailure | `check::open` |
//! | PingFailure | `nodes::start_without_a_leader` |
//! | NodeAdd, NodesCount, NodeName, NodeRename, NodeRemove, NodePending, Operation | `nodes::node_operations`, `nodes::more_than_one_node_matches` |
//! | NodeIsOutdated, four | `nodes::node_is_outdated` |
//! | NodeHeartbeat, IsOffline | `nodes::heartbeats_and_thresholds` |
//! | nodeinfo Version | `real::side_rows` |
//! | EnterExclusive, ExitExclusive | `check::the_exclusive_lock`, `check::the_exclusive_lock_in_vain`; corrected |
//! | Accept's preconditions, five | `real::the_join_gate`, `real::clustering_is_enabled_by_the_first_node`, `nodes::accepted` |
//! | Upgraded | `wait::a_node_that_notifies_unblocks_one_that_waits` |
//! | **LXD extras** | |
//! | EnsureSchema_*, "behind" as 412 | `wait::a_node_that_is_behind`: a policy |
//! | NotifyUpgradeCompleted | `wait::the_others_are_told_of_a_migration` |
//! | MaybeUpdate_*, TriggerUpdate_* | fall away: the gate starts no programs |
//! | DqliteVersionTooNew | falls away: there is one protocol |
//! | **microcluster** | |
//! | Test_waitUpgradeSchema, 20 rows | `tables::wait_upgrade_schema` |
//! | Test_waitUpgradeAPI, 7 rows | `tables::wait_upgrade_api` |
//! | Test_waitUpgradeSchemaAndAPI, 4 rows | `tables::wait_upgrade_schema_and_api` |
//! | Test_updateFromV1, twelve; Test_updateFromV1ClusterMembers | `engine::modules_that_grow`; `engine::modules`, `real::side_rows`: a database of before there were modules |
//! | extensions: names, registry, same version, 10,000 | `tables::names_of_extensions`, `tables::a_registry_of_extensions` |
//! | extensions: JSON, DB value | `real::side_rows` |
//! | **additions** | |
//! | the wait is lossless, cancellable | `wait::a_notification_before_the_wait_is_not_lost`, `wait::the_wait_can_be_cancelled` |
//! | two nodes migrate together | `real::two_nodes_migrate_together` |
//! | leader change during Ensure | `real::the_leader_changes_during_the_migration`, `cluster-tests/tests/schema.rs` |
//! | patch file crash points | `crash` |
//! | a pending row is ignored; ahead and behind in every order | `real::the_order_of_rows_decides_nothing` |
//! | the backup is the database of before | `check::backup`, `real::backup_of_a_replicated_database` |

mod check;
mod crash;
mod engine;
mod errors;
mod nodes;
mod real;
mod support;
mod tables;
#[path = "../common/trio.rs"]
mod trio;
mod wait;
