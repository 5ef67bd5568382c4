// Package report brings what gateway pods have to tell to the manager that
// leads, which writes the statuses, whichever manager a pod has its
// configuration from.
//
//	Reporter (agent) ─ WatchLeader ─► Server (any manager)
//	         └──────── Report ──────► Server (the one that leads) ─► xds.Server
//
// The messages are in reportv1. A pod that finds no leader goes on as it is and
// looks again: requests depend on none of this.
package report
