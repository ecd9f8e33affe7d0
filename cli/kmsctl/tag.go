package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/quorumkms/quorumkms/rpc/client"
	"github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

func (a *app) tagCommand() *cobra.Command {
	return group("tag", "Tag keys", a.tagSet(), a.tagRemove(), a.tagList())
}

func (a *app) tagSet() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:     "set KEY TAG=VALUE...",
		Short:   "Set tags of a key",
		Example: "  kmsctl key tag set alias/volumes team=storage zone=2",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			var tags pairs
			for _, arg := range args[1:] {
				if err := tags.Set(arg); err != nil {
					return usagef("tag %w", err)
				}
			}
			r, err := kms.Keys().TagResource(ctx, &quorumkmsv1.TagResourceRequest{
				KeyId: args[0], Tags: tags.tags(),
				ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "%s is tagged.", args[0])
		}),
	})
}

func (a *app) tagRemove() *cobra.Command {
	return a.mutatesKey(&cobra.Command{
		Use:     "remove KEY TAG...",
		Short:   "Remove tags of a key",
		Example: "  kmsctl key tag remove alias/volumes zone",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			r, err := kms.Keys().UntagResource(ctx, &quorumkmsv1.UntagResourceRequest{
				KeyId: args[0], TagKeys: args[1:],
				ExpectedRevision: a.revision, DryRun: a.dryRun, RequestId: a.requestID,
			})
			if err != nil {
				return err
			}
			return a.printLine(r, "The tags of %s are removed.", args[0])
		}),
	})
}

func (a *app) tagList() *cobra.Command {
	var p page
	c := &cobra.Command{
		Use:     "list KEY",
		Short:   "List the tags of a key",
		Example: "  kmsctl key tag list alias/volumes",
		RunE: a.remote(func(ctx context.Context, kms *client.Client, args []string) error {
			all := &quorumkmsv1.ListResourceTagsResponse{}
			var err error
			all.Tags, all.NextMarker, err = collect(p, func(limit uint32, marker string) ([]*quorumkmsv1.Tag, string, error) {
				r, err := kms.Keys().ListResourceTags(ctx, &quorumkmsv1.ListResourceTagsRequest{KeyId: args[0], Limit: limit, Marker: marker})
				all.IndexToken = r.GetIndexToken()
				return r.GetTags(), r.GetNextMarker(), err
			})
			if err != nil {
				return err
			}
			return a.print(all, func(w io.Writer) error {
				rows := [][]string{{"TAG", "VALUE"}}
				for _, tag := range all.GetTags() {
					rows = append(rows, []string{tag.GetKey(), tag.GetValue()})
				}
				return writePage(w, rows, all.GetNextMarker())
			})
		}),
	}
	p.flags(c)
	return c
}
